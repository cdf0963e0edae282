"""Measuring training steps for `benchmark_step.py`: imported when the platform is chosen, because it needs
megatron-core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_videogpt.attention.choice import obstacle
from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.config.schema import Config
from megatron_videogpt.model.flops import component_parameters, training_flops
from megatron_videogpt.objective.build import parameter_table
from megatron_videogpt.plan.estimate import hardware_flops, objective_work
from megatron_videogpt.platforms import Platform
from megatron_videogpt.train.async_values import AsyncValue, DeviceEvent
from megatron_videogpt.train.meter import row_work
from megatron_videogpt.train.metrics import peak_tflops
from megatron_videogpt.train.step import train_step
from tools.benchmark_attention import attempt
from tools.benchmark_step import build, synthetic, use_backend, waits
from tools.benchmark_timing import building_clock, dense_bytes, forget, free_memory, peak_memory, resident

COLUMNS = (
    *("attention", "step ms", "tokens/s", "TFLOP/s a device", "MFU", "HFU"),
    *("prepare ms", "forward ms", "backward ms", "optimizer ms", "tile lists ms", "share", "peak GiB"),
)


@dataclass
class Timed:
    """One backend; lists have one entry per timed step.  Seconds: step (end to end), prepare (by the host), forward,
    backward, optimizer, of the device.

    tokens: of the step on this data parallel rank; model, hardware: its FLOPs.  building: seconds of tile lists in one
    step; memory: GiB at the peak; waits: where the host waited for the GPU, None if it was not looked at; note: why
    there are no numbers.
    """

    step: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    hardware: list[float] = field(default_factory=list)
    building: float = math.nan
    memory: float = math.nan
    waits: list[str] | None = None
    note: str = ""


class Marks:
    """Points of one step in the device's queue: its start, forward passes, finished gradients, its end."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spans = device, []  # type: ignore[var-annotated]
        self.start = self.gradients = self.end = DeviceEvent(device)

    def describe(self, before: DeviceEvent, result: Timed) -> None:
        """Adds the step's seconds; waits for its end.  before: the end of the step before."""
        forward = sum(stop.since(start) for start, stop in self.spans)
        result.step.append(self.end.since(before))
        result.forward.append(forward)
        result.backward.append(self.gradients.since(self.start) - forward)
        result.optimizer.append(self.end.since(self.gradients))


class Session:
    """A model in training whose steps can be timed.  `current` takes the marks of the step that is queued."""

    def __init__(self, config: Config, platform: Platform, frame: tuple[int, int], options: argparse.Namespace) -> None:
        self.config, self.platform, self.frame, self.options = config, platform, frame, options
        self.chunks, self.optimizer, self.objective = build(config, platform)
        self.current = Marks(platform.device)
        self.before: AsyncValue | None = None
        for chunk in self.chunks:
            chunk.register_forward_pre_hook(lambda *_: self.current.spans.append([DeviceEvent(platform.device)]))
            chunk.register_forward_hook(lambda *_: self.current.spans[-1].append(DeviceEvent(platform.device)))
            chunk.module.config.finalize_model_grads_func = self._marked(chunk.module.config.finalize_model_grads_func)

    def _marked(self, finalize: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            finalize(*args, **kwargs)
            self.current.gradients = DeviceEvent(self.platform.device)

        return run

    def rows(self, samples: list[list[Any]], backend: str) -> list[Any]:
        """Whole rows on the CPU."""
        multiple = self.config.parallel.row_multiple
        return [self.objective.prepare(batch, multiple) for batch in samples]

    def queue(self, rows: list[Any]) -> None:
        """One step, as the trainer queues it."""
        context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        shards = [row.shard(*context).to(self.platform.device) for row in rows]
        self.current.start = DeviceEvent(self.platform.device)
        done = train_step(
            self.chunks, self.optimizer, self.objective, shards, self.config.optimizer.clip_grad, self.limit
        )
        self.before = AsyncValue(torch.stack([done.norm, done.taken.to(done.norm)]))
        self.current.end = DeviceEvent(self.platform.device)

    def limit(self) -> float:
        if self.before is not None:
            self.before.numbers()
        return math.inf


def work_of(config: Config, rows: list[Any]) -> tuple[int, float, float]:
    """(tokens, model FLOPs, hardware FLOPs) of rows with all their shards."""
    work, weights = row_work(rows), objective_work(config).weights
    parts = work.tokens, work.pairs, (work.unscored, work.unscored_pairs)
    return work.tokens, training_flops(config.model, weights, *parts), hardware_flops(config, weights, *parts)


def time_steps(session: Session, backend: str, result: Timed) -> None:
    """Warm up, then queue the timed steps without a pause in between, and one more to look at tile lists, memory and
    waiting.
    """
    options, device = session.options, session.platform.device
    batches = [
        synthetic(session.config, session.frame, options, number) for number in range(options.warmup + options.steps)
    ]
    marks = []
    session.platform.reset_memory_peak()
    for samples in batches:
        session.current = Marks(device)
        began = time.perf_counter()
        rows = session.rows(samples, backend)
        result.prepare.append(time.perf_counter() - began)
        session.queue(rows)
        marks.append(session.current)
        for values, value in zip((result.tokens, result.model, result.hardware), work_of(session.config, rows)):
            values.append(value)
    for before, one in zip(marks[options.warmup - 1 :], marks[options.warmup :]):
        one.describe(before.end, result)
    for values in (result.prepare, result.tokens, result.model, result.hardware):
        del values[: options.warmup]
    result.memory = session.platform.memory_peak() / 2**30
    examine(session, backend, batches[-1], result)


def examine(session: Session, backend: str, samples: list[list[Any]], result: Timed) -> None:
    """Steps that are not timed: tile lists, memory on a CPU, and where the host waits."""
    device = session.platform.name
    with building_clock(device) as building:
        forget()
        session.queue(session.rows(samples, backend))
        session.limit()
    result.building = building.seconds
    if device == "cpu":
        # The counter of the resident set knows the whole process's peak only.
        before = resident()
        result.memory = (
            before + 2**20 * peak_memory(lambda: session.queue(session.rows(samples, backend)), device)
        ) / 2**30
    if session.options.sync_check and device == "cuda":
        rows = session.rows(samples, backend)
        result.waits = waits(lambda: session.queue(rows))


def obstacle_of(config: Config, platform: Platform, backend: str, tokens: float) -> str:
    """Why a backend cannot train here, or an empty string."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    if backend != "dense":
        return obstacle(
            backend, platform.device.type, dtype, config.model.head_dim, deterministic=config.attention.deterministic
        )
    # One dense mask, and the scored rows of the last layer.
    need, free = 2 * dense_bytes(int(tokens), int(tokens), dtype), free_memory(platform.device.type)
    return f"dense masks need {need / 2**30:.1f} GiB, and {free / 2**30:.1f} are free" if need > free else ""


def measure_all(
    config: Config, platform: Platform, frame: tuple[int, int], options: argparse.Namespace
) -> dict[str, Timed]:
    """Backend -> its times, one model for all of them."""
    config = replace(config, train=replace(config.train, global_batch_size=config.train.micro_batch_size))
    session = Session(config, platform, frame, options)
    longest = sum(row.length for row in session.rows(synthetic(config, frame, options, 0), "ranged"))
    results: dict[str, Timed] = {}
    for backend in backends(config, platform, options):
        result = results[backend] = Timed()
        result.note = obstacle_of(config, platform, backend, longest)
        if not result.note:
            use_backend(session.chunks, backend)
            result.note = attempt(partial(time_steps, session, backend, result))
        session.before = None
        save(config, platform, results, options)
    return results


def save(config: Config, platform: Platform, results: dict[str, Timed], options: argparse.Namespace) -> None:
    """Write what there is so far into the file that was asked for, in case a later backend never comes back."""
    if not options.json or int(os.environ.get("RANK", "0")):
        return
    peak = peak_of(config, platform, options)
    rows = {
        name: {**asdict(result), "mfu": median_rate(result.model, result, peak)} for name, result in results.items()
    }
    facts = {
        "layers": config.model.num_layers,
        "recompute": config.parallel.recompute,
        "recompute_layers": config.parallel.recompute_layers,
    }
    options.json.write_text(json.dumps({**facts, "backends": rows}), encoding="utf-8")


def backends(config: Config, platform: Platform, options: argparse.Namespace) -> Iterator[str]:
    """The backends asked for, `auto` resolved."""
    from megatron_videogpt.attention.choice import select

    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    for name in options.backends.split(",") if options.backends else [config.attention.backend]:
        yield select("auto", platform.device.type, dtype, config.model.head_dim)[0] if name == "auto" else name


def peak_of(config: Config, platform: Platform, options: argparse.Namespace) -> float | None:
    """Peak FLOP/s of a device."""
    peak = options.peak or config.logging.peak_tflops or peak_tflops(platform.device_name)
    return peak * 1e12 if peak else None


def median_rate(flops: list[float], result: Timed, peak: float | None = 1.0) -> float | None:
    """Median over steps of FLOP/s on each device, as a share of the peak."""
    if result.note or not peak:
        return None
    share = parallel_state.get_data_parallel_world_size() / torch.distributed.get_world_size()
    return statistics.median(work * share / seconds / peak for work, seconds in zip(flops, result.step))


def table(
    config: Config, platform: Platform, results: dict[str, Timed], options: argparse.Namespace, left_out: int
) -> str:
    """Markdown."""
    model, layout, peak = config.model, config.parallel, peak_of(config, platform, options)
    channels = expected_geometry(config.codec).channels
    parameters = sum(component_parameters(parameter_table(config), model, channels).values())
    recompute = layout.recompute + (f" of {layout.recompute_layers} layers" if layout.recompute_layers else "")
    fewer = f" ({left_out} layers left out to fit the memory)" if left_out else ""
    tokens = next((result.tokens for result in results.values() if not result.note), [0])
    span = f"{min(tokens):,}" if min(tokens) == max(tokens) else f"{min(tokens):,} to {max(tokens):,}"
    lines = [
        f"{platform.device_name}, torch {torch.__version__}; {torch.distributed.get_world_size()} "
        f"process(es): TP {layout.tensor}{'+SP' * layout.sequence}, "
        f"CP {layout.context}, PP {layout.pipeline}; {parameters / 1e9:.3g} G parameters, {model.num_layers} "
        f"layers{fewer}, {config.train.precision}, "
        f"recompute {recompute}; {span} tokens a step and replica; {options.steps} steps, medians"
        + (f"; peak {peak / 1e12:g} TFLOP/s" if peak else "; peak unknown (--peak, tools/measure_peak.py)"),
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, result in results.items():
        if result.note:
            lines.append(f"| {name} | not run: {result.note} {'| ' * 12}|")
            continue
        step, *parts = (
            statistics.median(x)
            for x in (result.step, result.prepare, result.forward, result.backward, result.optimizer)
        )
        rate = (
            statistics.median(count / seconds for count, seconds in zip(result.tokens, result.step))
            * parallel_state.get_data_parallel_world_size()
        )
        used = [f"{median_rate(flops, result, peak):.1%}" if peak else "" for flops in (result.model, result.hardware)]
        times = " | ".join(f"{1e3 * part:.1f}" for part in parts)
        lines.append(
            f"| {name} | {1e3 * step:.1f} | {rate:,.0f} | {median_rate(result.model, result) / 1e12:.3g} | "
            f"{' | '.join(used)} | {times} | "
            f"{1e3 * result.building:.2f} | {result.building / step:.2%} | {result.memory:.2f} |"
        )
        if result.waits is not None:
            lines.append(f"| | host waits in a step: {', '.join(result.waits) or 'none'} {'| ' * 12}|")
    return "\n".join(lines)
