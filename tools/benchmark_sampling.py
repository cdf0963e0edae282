#!/usr/bin/env python3
"""Sampling with and without a cache of the history's keys and values, side by side in one run.

    # the two tables of docs/benchmarks.md, on one CPU thread
    python tools/benchmark_sampling.py
    python tools/benchmark_sampling.py --histories 8,24 --clips 8     # other rows of the second table
    python tools/benchmark_sampling.py --quick                        # a tiny model, in seconds: does it run here?
    # next block prediction instead: options and tables of its own (--help after it)
    python tools/benchmark_sampling.py --objective next_block_prediction

First a rollout of 24 frames after 56 given ones, in clips of 8, 8 and 8; then one clip after each number of given
frames.  Both ways run the same model with the same noise and get the same result, whose largest difference is shown.
Without a cache every step computes the whole history again; the guidance branch without history is a short sequence
in the same packed row there as well, so that neither way computes padding.  With a cache, all that it takes counts:
encoding the history, and at every further clip the clip before.

Columns: seconds of the whole rollout, CPU seconds of the process (which other processes on the machine do not
lengthen), their ratio, milliseconds that the history takes (all clips together) and that a step takes (mean).  Peak
memory is what a rollout adds to the resident set at most (the model is not in it), in runs of their own after all
others, with one step a clip, on whose number it does not depend. The model has random weights; only its shape
matters.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from tools import benchmark_block_sampling  # noqa: E402
from tools.benchmark_sampling_table import Case, Shape, Taken, table  # noqa: E402

CHANNELS = 4


def numbers(text: str) -> tuple[int, ...]:
    """ "8,24" -> (8, 24)."""
    return tuple(int(part) for part in text.split(","))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="key-value heads; default: as many as heads")
    parser.add_argument(
        "--grid", type=numbers, default=(6, 10), help="patch rows and columns of a frame (default 6,10)"
    )
    parser.add_argument(
        "--rollout",
        type=numbers,
        default=(56, 8, 8, 8),
        metavar="H,CLIP,...",
        help="of the first table: given frames, then clips",
    )
    parser.add_argument(
        "--histories", type=numbers, default=(8, 24, 56, 120), help="given frames of the second table, comma-separated"
    )
    parser.add_argument("--clips", type=numbers, default=(8, 24), help="clips of the second table, one in each rollout")
    parser.add_argument("--steps", type=int, default=10, help="Euler steps of a clip")
    parser.add_argument("--guidance", type=float, default=3.0, help="scale of guidance; 1 for none")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each, alternating; the fastest of each way counts"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and short histories, where no option says otherwise"
    )
    parser.add_argument("--json", type=paths.path, help="also write all results into this file")
    options = parser.parse_args()
    if options.quick:
        # As defaults: what the command line says still counts.
        parser.set_defaults(
            layers=2, hidden=32, heads=2, grid=(2, 3), steps=2, rollout=(6, 2, 2), histories=(2, 6), clips=(2,)
        )
        options = parser.parse_args()
    small = [name for name in ("layers", "heads", "steps", "threads", "repeat") if getattr(options, name) < 1]
    if (
        small
        or min(options.histories) < 0
        or min(options.clips) < 1
        or len(options.rollout) < 2
        or min(options.rollout[1:]) < 1
        or options.rollout[0] < 0
    ):
        parser.error(
            f"{', '.join(f'--{name}' for name in small) or '--rollout, --histories, --clips'}: expected "
            "positive numbers (histories may be 0)"
        )
    if len(options.grid) != 2 or min(options.grid) < 1:
        parser.error("--grid needs rows and columns")
    return options


def denoisers(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Both ways to denoise with one model, by name; each call makes a new one, which remembers nothing."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.schema import Config, ModelConfig, SampleConfig, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser
    from megatron_videogpt.platforms import world
    from tools.measuring.networks import spread

    model = ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        ffn_hidden_size=shape.width * 8 // 3 // 16 * 16,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        position_table_size=max(32, *shape.grid),
    )
    config = Config(model=model, train=TrainConfig(precision="fp32", platform="cpu"))
    check_config(config, 1)
    world.start(platform, config.parallel)
    network = build_network(config, CHANNELS, platform, "ranged")
    load_released(network, model, lambda entry: spread(entry, config, CHANNELS))
    configs = {name: replace(config, sample=SampleConfig(cache=name == "cached")) for name in ("uncached", "cached")}
    return {
        name: lambda chosen=chosen: build_denoiser([network], chosen, platform.device)
        for name, chosen in configs.items()
    }  # type: ignore[misc]


class Watched:
    """A denoiser whose time is taken."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.remembering, self.predicting, self.steps = denoiser, 0.0, 0.0, 0

    def begin(self, conditions: list[Any]) -> None:
        """See `Denoiser.begin`."""
        self.denoiser.begin(conditions)

    def remember(self, histories: list[Any], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        began = time.perf_counter()
        self.denoiser.remember(histories, kept)
        self.remembering += time.perf_counter() - began

    def predict(self, clips: list[Any], t: float, guided: bool) -> Any:
        """See `Denoiser.predict`."""
        began = time.perf_counter()
        result = self.denoiser.predict(clips, t, guided)
        self.predicting += time.perf_counter() - began
        self.steps += 1
        return result


def roll(build: Callable[[], Any], case: Case, shape: Shape) -> tuple[Taken, Any]:
    """One rollout: what it took, and the new latents."""
    from megatron_videogpt.hub.common.sampling_videogpt import Settings, continue_videos
    from megatron_videogpt.objective.next_clip.sampler import keyed_noise
    from megatron_videogpt.objective.noise import normal

    settings = Settings(
        clips=case.clips, window=case.history + sum(case.clips), steps=case.steps, guidance=case.guidance
    )
    history = normal(0, "history", (case.history, CHANNELS, 2 * shape.grid[0], 2 * shape.grid[1]))
    watched = Watched(build())
    wall, cpu = time.perf_counter(), time.process_time()
    (new,) = continue_videos(watched, [history], settings, keyed_noise([0], 0))
    return Taken(
        time.perf_counter() - wall, time.process_time() - cpu, watched.remembering, watched.predicting / watched.steps
    ), new


def measure(build: dict[str, Callable[[], Any]], case: Case, shape: Shape, repeat: int) -> dict[str, Any]:
    """Both ways, alternating."""
    best: dict[str, Taken] = {}
    results: dict[str, Any] = {}
    for _ in range(repeat):
        for name in build:
            taken, results[name] = roll(build[name], case, shape)
            best[name] = min(best.get(name, taken), taken, key=lambda one: one.cpu)
    error = float((results["cached"] - results["uncached"]).abs().max() / results["uncached"].abs().max())
    ratios = {f"{key}_ratio": getattr(best["uncached"], key) / getattr(best["cached"], key) for key in ("wall", "cpu")}
    return {
        "history": case.history,
        "clips": case.clips,
        **{name: asdict(taken) for name, taken in best.items()},
        **ratios,
        "error": error,
    }


def resident(field: str) -> float:
    """MiB of this process's resident set: now (``VmRSS``) or at most so far (``VmHWM``)."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"{field}:")
    )
    return int(line.split()[1]) / 1024


def peak(build: Callable[[], Any], case: Case, shape: Shape) -> float:
    """MiB that one step of every clip takes at most, above what the process holds before it."""
    glibc = ctypes.CDLL(None)
    # From the first call on, large freed blocks go back to the system (M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of
    # mallopt(3)): a resident set is what is alive.  Those that were freed before lie inside the heap.
    for parameter, value in ((-1, 65536), (-2, 0), (-3, 65536)):
        glibc.mallopt(parameter, value)
    glibc.malloc_trim(0)
    before = resident("VmRSS")
    # Starts the kernel's high-water mark afresh.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    roll(build, replace(case, steps=1), shape)
    return resident("VmHWM") - before


def save(path: Path | None, shape: Shape, results: list[dict[str, Any]]) -> None:
    """Everything so far, in case the end is never reached."""
    if path:
        path.write_text(json.dumps({"shape": asdict(shape), "rollouts": results}), encoding="utf-8")


def main() -> None:
    """Measure and print Markdown tables."""
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    shape = Shape(options.layers, options.hidden, options.heads, options.kv_heads or options.heads, options.grid)
    rollout = Case(options.rollout[0], options.rollout[1:], options.steps, options.guidance)
    import torch

    torch.set_num_threads(options.threads)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tools.benchmark_report import machine

    single = [
        Case(history, (clip,), options.steps, options.guidance)
        for clip in options.clips
        for history in options.histories
    ]
    print(f"`python tools/benchmark_sampling.py {' '.join(sys.argv[1:])}`\n\n{machine('cpu', options.threads)}\n")
    heads = f"{shape.heads} heads" + (f" ({shape.kv_heads} key-value)" if shape.kv_heads != shape.heads else "")
    grid = "x".join(map(str, shape.grid))
    print(
        f"{shape.layers} layers of {shape.width}, {heads}, float32; frames of {grid} patches; {options.steps} "
        f"steps, guidance {options.guidance:g}\n",
        flush=True,
    )
    build, cases = denoisers(shape), [rollout, *single]
    # The first call of everything loads and allocates.
    measure(build, replace(rollout, history=1, clips=(1,)), shape, 1)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=2 * len(cases))
        results = []
        for case in cases:
            bar.update(task, description=f"{case} frames")
            results.append(measure(build, case, shape, options.repeat))
            save(options.json, shape, results)
            bar.advance(task)
        # What libraries allocate once, at sizes that they have not met before, is not sampling's.
        peak(build["uncached"], rollout, shape)
        for case, result in zip(cases, results):
            bar.update(task, description=f"memory of {case} frames")
            result["peak"] = {name: peak(build[name], case, shape) for name in build}
            save(options.json, shape, results)
            bar.advance(task)
    print(f"A rollout of {sum(rollout.clips)} frames:\n\n{table(results[:1])}\nOne clip:\n\n{table(results[1:])}")


if __name__ == "__main__":
    try:
        if "next_block_prediction" in sys.argv:
            benchmark_block_sampling.run(sys.argv[1:])
        else:
            main()
    except UserError as error:
        sys.exit(exit_code(error))
