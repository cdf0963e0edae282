"""The work of the sample command: rows of inputs through the model, a progress bar, files as clips are finished."""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..config.schema import SampleConfig
from ..errors import RunError, UserError
from ..objective.base import Sampler
from ..platforms.together import fail_together, gather_results
from ..version import __version__
from .generate import Model, conditions_of, continue_row, encode
from .output import Output
from .prompts import Prompt, Source, read_prompt


@contextmanager
def alike() -> Iterator[None]:
    """What goes wrong in this block goes wrong on every process in the same way: only one of them tells it."""
    try:
        yield
    except UserError as error:
        raise error if getattr(error, "on_every_rank", False) else RunError(str(error)) from error


def is_first() -> bool:
    """Whether this process reads for people and writes: the only one, or rank 0 of those that share the model."""
    # Late: it imports megatron-core, for which a platform must have been chosen.
    from ..platforms.world import is_rank_zero

    return is_rank_zero()


@dataclass
class Job:
    """One run of the command: what it samples with, and how far it is.

    inputs: how many there are; skipped: how many of them were not readable so far.
    """

    args: argparse.Namespace
    model: Model
    settings: SampleConfig
    interval: int
    inputs: int
    skipped: int = 0

    def __post_init__(self) -> None:
        self.sampler: Sampler = self.model.sampler(self.settings)
        self.each = sum(self.settings.clips)
        self.finished, self.started = 0, time.perf_counter()
        self.done, self.steps, self.tokens = 0.0, 0, 0
        columns = (
            "sampling",
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total} frames  {task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        # Lines on a terminal go above the bar; those into a file stay there.
        self.progress = Progress(
            *columns, console=Console(stderr=True), disable=not is_first(), redirect_stdout=sys.stdout.isatty()
        )
        self.task = self.progress.add_task("", total=self.inputs * self.each, rate="")

    def rows(self, sources: list[Source]) -> Iterator[list[tuple[Source, Prompt]]]:
        """Readable inputs, `--batch` at a time; an unreadable one among several is named and counted."""
        row: list[tuple[Source, Prompt]] = []
        for source in sources:
            prompt = self._read(source)
            if prompt is None:
                continue
            row.append((source, prompt))
            if len(row) == self.args.batch:
                yield row
                row = []
        if row:
            yield row

    def _read(self, source: Source) -> Prompt | None:
        config = replace(self.model.config, sample=self.settings)

        def read() -> tuple[Prompt | None, str]:
            try:
                return read_prompt(source, config, self.model.codec, self.args.history, self.interval), ""
            except UserError as error:
                return None, str(error)

        prompt, problem = _alike(source, read)
        if prompt is not None:
            return prompt
        if self.inputs == 1:
            raise RunError(problem)
        self.skipped += 1
        self.progress.update(self.task, total=(self.inputs - self.skipped) * self.each)
        if is_first():
            self.progress.console.print(
                f"error: {' '.join(problem.split())}", markup=False, highlight=False, soft_wrap=True
            )
        return None

    def sample(
        self, row: list[tuple[Source, Prompt]], bases: dict[str, Path], lpips: Callable | None
    ) -> dict[str, dict[str, Any]]:
        """Continue a row, write its files, and print a line on each; comparisons by the names of the prompts that have
        a truth.
        """
        began = time.perf_counter()
        prompts = [prompt for _, prompt in row]
        histories = encode(self.model, prompts)
        with ExitStack() as open_files:
            with fail_together(None, "opening the output"):
                outputs = (
                    [
                        open_files.enter_context(self._output(bases, prompt, given))
                        for prompt, given in zip(prompts, histories)
                    ]
                    if is_first()
                    else []
                )
            shown = conditions_of(self.model, prompts)
            for clips in continue_row(
                self.model, self.sampler, histories, self.settings, self.args.seed, self._watch, is_first(), shown
            ):
                for output, clip in zip(outputs, clips):
                    output.append(clip)
            seconds = (time.perf_counter() - began) / len(row)
            reports = [
                self._report(source, output, len(given), seconds)
                for (source, _), output, given in zip(row, outputs, histories)
            ]
            written = [output.finish(report) for output, report in zip(outputs, reports)]
        self.finished += len(row) * self.each
        self.done = float(self.finished)
        results = {}
        for output, report, paths in zip(outputs, reports, written):
            print(
                f"{report['input']}: {report['given_frames']} frames given, {report['generated_frames']} "
                f"generated ({report['frames_per_second']:.2f} frames/s)"
            )
            print(f"  {output.describe()}\n  wrote {', '.join(map(str, paths))}")
            result = self._compare(output, lpips) if self.args.compare else None
            if result is not None:
                results[output.prompt.name] = result
        return results

    def _output(self, bases: dict[str, Path], prompt: Prompt, given: torch.Tensor) -> Output:
        total = self.each * self.model.codec.temporal_stride
        return Output(
            bases[prompt.name],
            self.args.formats,
            prompt,
            given,
            total,
            keep=self.args.compare and prompt.truth is not None,
        )

    def _compare(self, output: Output, lpips: Callable | None) -> dict[str, Any] | None:
        from .compare import compare

        truth = output.prompt.truth
        if truth is None or not len(truth):
            print("  nothing to compare with: the input ends with the given frames")
            return None
        result = compare(output.kept, truth, lpips)
        print(f"  {describe_means(result['mean'])} (mean of {result['frames']} frames)")
        return result

    def _watch(self, frames: float, tokens: int) -> None:
        self.done, self.steps, self.tokens = self.done + frames, self.steps + 1, self.tokens + tokens
        seconds = time.perf_counter() - self.started
        rate = f"{self.done / seconds:.2f} frames/s"
        if self.tokens:
            rate += f"  {self.steps} steps  {self.tokens / seconds:.0f} tokens/s"
        self.progress.update(self.task, completed=self.done, rate=rate)

    def _report(self, source: Source, output: Output, history: int, seconds: float) -> dict[str, Any]:
        return {
            "checkpoint": str(self.args.checkpoint),
            "step": self.model.step,
            "weights": self.args.weights,
            "input": str(source),
            "class": output.prompt.label if self.model.conditioning.options.kind == "class" else None,
            "text": output.prompt.text if self.model.conditioning.options.kind == "text" else None,
            "settings": {
                **asdict(self.settings),
                "history": history,
                "interval": self.interval,
                "seed": self.args.seed,
                "batch": self.args.batch,
            },
            "given_frames": len(output.prompt.condition),
            "generated_frames": output.count,
            "frames_shown_per_second": output.prompt.fps,
            "seconds": seconds,
            "frames_per_second": output.count / seconds,
            "processes": self.model.config.parallel.tensor,
            "device": str(self.model.device),
            "codec": {"name": self.model.codec.name, "fingerprint": self.model.codec.fingerprint},
            "versions": _versions(),
            "errors": output.errors,
        }


def _alike(source: Source, read: Callable[[], tuple[Prompt | None, str]]) -> tuple[Prompt | None, str]:
    """What this process reads of an input, or why it cannot, once all that share the model have read the same; a
    collective.

    Raises RunError where they read different frames, or only some could read it.
    """
    prompt: Prompt | None = None
    problem = ""

    def digest() -> tuple[bytes, str]:
        nonlocal prompt, problem
        prompt, problem = read()
        return hashlib.blake2b(b"" if prompt is None else prompt.condition.tobytes()).digest(), problem

    told = gather_results(digest, None, f"reading {source}")
    failed = [(rank, text) for rank, (_, text) in enumerate(told) if text]
    remedy = "put it where all of them see the same file"
    if 0 < len(failed) < len(told):
        raise RunError(f"process {failed[0][0]} cannot read what others can: {failed[0][1]}; {remedy}")
    if len({found for found, _ in told}) > 1:
        raise RunError(f"{source}: the processes read different frames from it; {remedy}")
    return prompt, problem


def _versions() -> dict[str, str]:
    libraries = {name: metadata.version(name) for name in ("megatron-core", "numpy")}
    # Its metadata do not always say for which device it was built.
    built = {"torch": str(torch.__version__)}
    return {"megatron_videogpt": __version__, "python": platform.python_version(), **built, **libraries}


def describe_means(mean: dict[str, float | None]) -> str:
    """`PSNR 21.30 dB, SSIM 0.811`."""
    labels = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}
    return ", ".join(label.format(mean[name]) for name, label in labels.items() if mean[name] is not None)
