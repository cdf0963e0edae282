"""Rows through a model in training, timed by the device: imported once the platform is chosen, because it needs
megatron-core.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from typing import Any

import torch
from megatron.core import parallel_state

from ...attention.choice import select
from ...codec.geometry import expected_geometry
from ...config.schema import Config
from ...data.plans import Sample
from ...errors import UserError
from ...model.ahead import planner
from ...objective.build import build_network, build_objective
from ...objective.noise import normal
from ...plan.estimate import longest_row
from ...plan.recompute import resolve_recompute
from ...platforms import Platform, world
from ..async_values import AsyncValue, DeviceEvent
from ..optimizer import build_optimizer, wrap
from ..step import train_step
from .fit import Row


def with_layers(config: Config, layers: int) -> Config:
    """The same with fewer decoder layers."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=layers))


def resolved(config: Config, platform: Platform, frame: tuple[int, int], fit: bool) -> Config:
    """`recompute=auto` resolved for this device; with `fit`, by as many layers fewer as it takes."""
    processes, channels = int(os.environ.get("WORLD_SIZE", "1")), expected_geometry(config.codec).channels
    memory = config.parallel.memory_gb * 1e9 or platform.memory_total()
    chosen = (
        dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, recompute="auto")) if fit else config
    )
    chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, platform=platform.name))
    for layers in range(config.model.num_layers, 0, -config.parallel.stages):
        try:
            return resolve_recompute(with_layers(chosen, layers), processes, channels, memory, frame)
        except UserError:
            if not fit:
                raise
    raise UserError(
        f"not even {config.parallel.stages} layers of this model and rows of "
        f"{longest_row(config, frame).tokens:,.0f} tokens fit {memory / 1e9:.0f} GB"
    )


def build(config: Config, platform: Platform) -> tuple[list[Any], Any, Any]:
    """(wrapped chunks, optimizer, objective), weights filled with noise on the device: start values from names take
    minutes for large models.
    """
    world.start(platform, config.parallel)
    backend = config.attention.backend
    if backend == "auto":
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        backend = select("auto", platform.device.type, dtype, config.model.head_dim)[0]
    chunks = [
        build_network(config, expected_geometry(config.codec).channels, platform, backend, number)
        for number in range(config.parallel.virtual_pipeline)
    ]
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=config.model.init_std)
    wrapped = wrap(config, chunks)
    return wrapped, build_optimizer(config, wrapped), build_objective(config)


class Timer:
    """A model in training whose rows are timed, one step each."""

    def __init__(self, config: Config, platform: Platform, frame: tuple[int, int]) -> None:
        self.config, self.platform, codec = config, platform, expected_geometry(config.codec)
        self.shape = codec.channels, frame[0] // codec.spatial_stride, frame[1] // codec.spatial_stride
        self.chunks, self.optimizer, self.objective = build(config, platform)
        self.planned = planner([chunk.module for chunk in self.chunks], platform.device)
        self.before: AsyncValue | None = None
        self.gradients = DeviceEvent(platform.device)
        for chunk in self.chunks:
            settings = chunk.module.config
            settings.finalize_model_grads_func = self._marked(settings.finalize_model_grads_func)

    def _marked(self, finalize: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            finalize(*args, **kwargs)
            self.gradients = DeviceEvent(self.platform.device)

        return run

    def seconds(self, row: Row) -> float:
        """Of its forward and backward pass, until the gradients are there on all ranks; latents are noise."""
        samples = [
            Sample(key, "", normal(key, "latents", (sum(clips), *self.shape)), None, clips)
            for key, clips in enumerate(row)
        ]
        whole = self.objective.prepare(samples, self.config.parallel.row_multiple)
        context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        shard = self.planned(whole).shard(*context).to(self.platform.device)
        start = DeviceEvent(self.platform.device)
        clip = self.config.optimizer.clip_grad
        done = train_step(self.chunks, self.optimizer, self.objective, [shard], clip, self._limit)
        self.before = AsyncValue(torch.stack([done.norm, done.taken.to(done.norm)]))
        return self.gradients.since(start)

    def _limit(self) -> float:
        if self.before is not None:
            self.before.numbers()
        return math.inf


def measure(config: Config, platform: Platform, frame: tuple[int, int], rows: list[Row], repeats: int) -> list[float]:
    """Seconds of the forward and backward pass of every row on this device: the fastest of `repeats`, as other
    processes only add to it; of the slowest rank.
    """
    timer = Timer(config, platform, frame)
    times: list[list[float]] = [[] for _ in rows]
    # The first round warms up: kernels are compiled for every shape.
    for repeat in range(repeats + 1):
        for number, row in enumerate(rows):
            seconds = timer.seconds(row)
            if repeat:
                times[number].append(seconds)
        if int(os.environ.get("RANK", "0")) == 0:
            warming = "" if repeat else " (warming up)"
            print(f"round {repeat} of {repeats}{warming}: {len(rows)} rows", file=sys.stderr, flush=True)
    slowest = torch.tensor([min(values) for values in times])
    torch.distributed.all_reduce(
        slowest,
        op=torch.distributed.ReduceOp.MAX,
        group=None if platform.name == "cpu" else torch.distributed.new_group(backend="gloo"),
    )
    return [float(value) for value in slowest]
