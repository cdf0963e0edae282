"""A model in training whose steps are timed, with each attention backend; imported when the platform is chosen, because
it needs megatron-core.
"""

from __future__ import annotations

import argparse
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_videogpt import attention
from megatron_videogpt.attention.choice import obstacle, select
from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.model import core_attention
from megatron_videogpt.model.ahead import planner
from megatron_videogpt.model.flops import training_flops
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.plan.estimate import hardware_flops, objective_work
from megatron_videogpt.platforms import Platform
from megatron_videogpt.train.async_values import AsyncValue, DeviceEvent
from megatron_videogpt.train.cost.timing import build
from megatron_videogpt.train.meter import row_work
from megatron_videogpt.train.step import train_step
from tools.measuring.clock import attempt, peak_memory, resident
from tools.measuring.kernels import building_clock, dense_attend, dense_bytes, forget, free_memory
from tools.measuring.masks import Split


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


def use_backend(chunks: list[Any], name: str) -> None:
    """Let all layers attend with a backend, or with the dense mask."""

    def attend(backend: str, *args: Any, **hints: Any) -> Any:
        return dense_attend(*args) if backend == "dense" else attention.attend(backend, *args, **hints)

    core_attention.attend = attend
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, core_attention.IntervalAttention):
                module.backend = name
        # By this, rows are planned ahead.
        chunk.module.config.interval_backend = name


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

    def rows(self, samples: list[list[Any]]) -> list[Any]:
        """Whole rows on the CPU."""
        multiple = self.config.parallel.row_multiple
        return [self.objective.prepare(batch, multiple) for batch in samples]

    def masks_ahead(self, samples: list[list[Any]], backend: str) -> list[tuple[Any, ...]]:
        """Masks of `rows` with their plans, which a thread ahead of the step makes in training, and no step waits for;
        nothing of backends that do without.
        """
        if backend not in attention.PLANNED:
            return []
        planned = planner([chunk.module for chunk in self.chunks], self.platform.device)
        return [planned(row).masks for row in self.rows(samples)]

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


def draw_clips(config: Config, lengths: str, step: int) -> tuple[int, ...]:
    """Frames of the clips of a sample."""
    split = Split(config.data.frames, config.data.clips, last=int(lengths == "fixed" and config.data.clips[1] > 1))
    return split.draw(random.Random(0 if lengths == "fixed" else step))


def synthetic(config: Config, frame: tuple[int, int], options: argparse.Namespace, step: int) -> list[list[Any]]:
    """Samples of each micro-batch of a step: latents of noise."""
    codec = expected_geometry(config.codec)
    shape = (config.data.frames, codec.channels, frame[0] // codec.spatial_stride, frame[1] // codec.spatial_stride)
    keys = [step * 1000 + number for number in range(options.micro_batches * config.train.micro_batch_size)]
    samples = [
        Sample(
            key=key,
            name=str(key),
            mean=normal(key, "latents", shape),
            logvar=None,
            clips=draw_clips(config, options.lengths, key),
        )
        for key in keys
    ]
    return [
        samples[start : start + config.train.micro_batch_size]
        for start in range(0, len(samples), config.train.micro_batch_size)
    ]


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
    ahead = [session.masks_ahead(samples, backend) for samples in batches]
    marks = []
    session.platform.reset_memory_peak()
    for samples, masks in zip(batches, ahead):
        session.current = Marks(device)
        began = time.perf_counter()
        rows = session.rows(samples)
        result.prepare.append(time.perf_counter() - began)
        rows = [replace(row, masks=own) for row, own in zip(rows, masks)] if masks else rows
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


def waits(call: Callable[[], Any]) -> list[str]:
    """Places, with how often, at which the host waited for the GPU while `call` ran (CUDA's own warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(item.filename).name}:{item.lineno}" for item in caught if "synchroniz" in str(item.message)]
    return [f"{place} ({places.count(place)}x)" for place in sorted(set(places))]


def examine(session: Session, backend: str, samples: list[list[Any]], result: Timed) -> None:
    """Steps that are not timed: tile lists, memory on a CPU, and where the host waits."""
    device = session.platform.name
    with building_clock(device) as building:
        forget()
        session.queue(session.rows(samples))
        session.limit()
    result.building = building.seconds
    if device == "cpu":
        # The counter of the resident set knows the whole process's peak only.
        before = resident()
        result.memory = (before + 2**20 * peak_memory(lambda: session.queue(session.rows(samples)), device)) / 2**30
    if session.options.sync_check and device == "cuda":
        rows = session.rows(samples)
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
    config: Config,
    platform: Platform,
    frame: tuple[int, int],
    options: argparse.Namespace,
    save: Callable[[dict[str, Timed]], None],
) -> dict[str, Timed]:
    """Backend -> its times, one model for all of them.  save: is called with what there is so far, in case a later
    backend never comes back.
    """
    config = replace(config, train=replace(config.train, global_batch_size=config.train.micro_batch_size))
    session = Session(config, platform, frame, options)
    longest = sum(row.length for row in session.rows(synthetic(config, frame, options, 0)))
    results: dict[str, Timed] = {}
    for backend in backends(config, platform, options):
        result = results[backend] = Timed()
        result.note = obstacle_of(config, platform, backend, longest)
        if not result.note:
            use_backend(session.chunks, backend)
            result.note = attempt(partial(time_steps, session, backend, result))
        session.before = None
        save(results)
    return results


def backends(config: Config, platform: Platform, options: argparse.Namespace) -> Iterator[str]:
    """The backends asked for, `auto` resolved."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    for name in options.backends.split(",") if options.backends else [config.attention.backend]:
        yield select("auto", platform.device.type, dtype, config.model.head_dim)[0] if name == "auto" else name
