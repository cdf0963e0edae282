"""Time of a training step, and the layouts that make it short.

Times rest on assumptions that `Device` and `communication.Links` state; they rank layouts, and a run's own `step_time`
is the truth.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config.check import find_problems
from ..config.derived import recomputed_layers, stage_layers
from ..config.schema import Config
from ..model.flops import attention_flops, feed_forward_weights, layer_parameters
from ..objective.work import Work
from .communication import Links, Traffic, traffic
from .estimate import longest_row, mean_row, step_flops
from .memory import Memory, layer_bytes, micro_batches, rank_memory
from .recompute import least_recompute

PEAK_TFLOPS = 989.0
"""Assumed where `logging.peak_tflops` is 0: an H100's dense bf16 peak."""

MFU = 0.4
"""Assumed model FLOP utilisation."""


@dataclass(frozen=True)
class Device:
    """What a device is assumed to do: peak FLOP/s, the share of it that matrix products and interval attention reach,
    and bytes/s from memory.
    """

    peak: float = PEAK_TFLOPS * 1e12
    products: float = 0.65
    attention: float = 0.4
    memory: float = 2.5e12
    links: Links = field(default_factory=Links)


def device_of(config: Config) -> Device:
    """The assumed device with the peak that the configuration names."""
    return Device(peak=(config.logging.peak_tflops or PEAK_TFLOPS) * 1e12)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.  compute: of an even pipeline without bubble, recomputation included; bubble:
    waiting of the pipeline; communication: what is not hidden.
    """

    compute: float
    bubble: float
    communication: float

    @property
    def total(self) -> float:
        """The step, without the optimizer's own arithmetic, data and validation."""
        return self.compute + self.bubble + self.communication


def bubble(times: tuple[float, ...], chunks: int, count: int) -> float:
    """Waiting of a pipeline relative to its work, when pipeline rank r takes ``times[r]`` for one of `count`
    micro-batches in `chunks` chunks.

    The slowest rank sets the pace, and the others' passes for one micro-batch fill and drain the pipeline: even stages
    wait (PP-1) / (chunks * count).
    """
    slowest, once = max(times), sum(times)
    return (count * slowest + (once - slowest) / chunks) / (count * once / len(times)) - 1


def rank_seconds(config: Config, channels: int, work: Work[float], device: Device) -> tuple[float, ...]:
    """Seconds that each pipeline rank computes for the forward and backward pass of one micro-batch of this mean work,
    recomputation included.
    """
    model, layout = config.model, config.parallel
    shards = layout.tensor * layout.context
    rate = device.peak * device.products * shards
    weights = 6 * layer_parameters(model) * work.tokens / rate
    pairs = attention_flops(model, work.pairs) / model.num_layers / (device.peak * device.attention * shards)
    layer = layer_bytes(config, work.tokens)
    # Written and read forward, read and written backward: what a layer keeps, and what "selective" computes again.
    moved, again_moved = (
        4 * layer.kept("none") / device.memory,
        2 * (layer.kept("none") - layer.kept("selective")) / device.memory,
    )
    feed_forward = 2 * feed_forward_weights(model) * work.tokens / rate
    extra = {"mlp": feed_forward + again_moved, "full": (weights + pairs + moved) / 3}.get(layout.recompute, 0.0)
    # The patch projections are small; embedding and head mostly move hidden states.
    head = 8 * layer.stream * layout.tensor / device.memory
    seconds = []
    for rank in range(layout.pipeline):
        layers = stage_layers(config)[rank :: layout.pipeline]
        again = sum(recomputed_layers(layout, layers))
        base = sum(layers) * (
            weights + pairs + moved + (again_moved if layout.recompute in ("selective", "mlp") else 0.0)
        )
        seconds.append(base + again * extra + (head if rank in (0, layout.pipeline - 1) else 0.0))
    return tuple(seconds)


def step_time(config: Config, channels: int, world_size: int, work: Work[float], device: Device) -> StepTime:
    """Time of one step whose samples have this mean work.  `parallel.recompute` must be resolved.

    Exposed are all TP and CP calls, the sends of a pipeline, and of the gradients' and parameters' way over DP what one
    micro-batch's backward and forward pass cannot hide (all of it where overlap is off).
    """
    row = mean_row(config, world_size, work)
    count = micro_batches(config, world_size)
    times = rank_seconds(config, channels, row, device)
    compute = count * sum(times) / len(times)
    exposed = sum(
        exposed_seconds(config, item, max(times), device.links)
        for item in traffic(config, channels, world_size, row, device.links.node)
    )
    return StepTime(compute, compute * bubble(times, config.parallel.virtual_pipeline, count), exposed)


def exposed_seconds(config: Config, item: Traffic, micro_batch: float, links: Links) -> float:
    """Seconds of a kind of communication that a rank waits for; micro_batch: its seconds of compute for one."""
    seconds = item.seconds(links)
    if item.axis != "DP":
        return seconds
    gradients = "gradients" in item.what
    overlapped = config.parallel.overlap_grad_reduce if gradients else config.parallel.overlap_param_gather
    if not overlapped:
        return seconds
    # The last call (the first, for parameters) has nothing to hide behind.
    return max(seconds - micro_batch * (2 / 3 if gradients else 1 / 3), seconds / item.calls)


@dataclass(frozen=True)
class Plan:
    """A layout with what it needs; overrides: what to add to the command line."""

    config: Config
    world_size: int
    overrides: tuple[str, ...]
    memory: Memory
    time: StepTime
    mfu: float


def layouts(config: Config, world_size: int, node: int = 8) -> Iterator[Config]:
    """Layouts of TP (inside a node), SP, CP, PP, VPP and samples per micro-batch on `world_size` devices, without
    recomputation; a few break a rule.
    """
    model = config.model
    for tensor, context in itertools.product((1, 2, 4, 8, 16), _powers(model.num_attention_heads)):
        if tensor > node or world_size % (tensor * context) or model.num_attention_heads % (tensor * context):
            continue
        for pipeline in [
            size for size in range(1, model.num_layers + 1) if world_size % (tensor * context * size) == 0
        ]:
            rest = world_size // (tensor * context * pipeline)
            sizes = (1,) if config.data.pack_tokens else sorted({1, 2, 4, 8, config.train.micro_batch_size})
            packs = [
                size for size in sizes if config.data.pack_tokens or config.train.global_batch_size % (rest * size) == 0
            ]
            chunks = (
                [1]
                if pipeline == 1
                else [size for size in (1, 2, 4, 8) if size == 1 or model.num_layers % (pipeline * size) == 0]
            )
            for sequence, chunk, samples in itertools.product((False, True) if tensor > 1 else (False,), chunks, packs):
                parallel = replace(
                    config.parallel,
                    tensor=tensor,
                    sequence=sequence,
                    context=context,
                    pipeline=pipeline,
                    virtual_pipeline=chunk,
                    pipeline_layers=(),
                    recompute="none",
                    recompute_layers=0,
                )
                yield replace(config, parallel=parallel, train=replace(config.train, micro_batch_size=samples))


def _powers(limit: int) -> list[int]:
    """Divisors of `limit`."""
    return [size for size in range(1, limit + 1) if limit % size == 0]


def propose(
    config: Config,
    channels: int,
    world_size: int,
    work: Work[float],
    memory_bytes: float,
    frame: tuple[int, int] | None = None,
    most: int = 5,
) -> list[Plan]:
    """The `most` layouts with the shortest estimated steps that fit `memory_bytes` less `memory.RESERVE`, best first;
    of each TP x CP x PP the best only.

    work: the mean over samples, which sets the time; memory is that of the longest row (`frame`: height and width in
    pixels, None for the largest).
    """
    device = device_of(config)
    one = longest_row(replace(config, train=replace(config.train, micro_batch_size=1)), frame)
    # Without recomputation a layout is at its fastest: what is slower then than `most` others need not be looked at.
    timed = [
        (step_time(layout, channels, world_size, work, device).total, layout)
        for layout in layouts(config, world_size, device.links.node)
    ]
    best: dict[tuple[int, int, int], Plan] = {}
    for fastest, layout in sorted(timed, key=lambda entry: entry[0]):
        if len(best) >= most and fastest > sorted(plan.time.total for plan in best.values())[most - 1]:
            break
        longest = one.times(layout.train.micro_batch_size)
        chosen = (
            None
            if find_problems(layout, world_size)
            else least_recompute(layout, world_size, channels, longest, memory_bytes)
        )
        if chosen is None:
            continue
        plan = plan_of(chosen, channels, world_size, work, longest, device)
        key = (layout.parallel.tensor, layout.parallel.context, layout.parallel.pipeline)
        if key not in best or (plan.time.total, plan.memory.total) < (best[key].time.total, best[key].memory.total):
            best[key] = plan
    return sorted(best.values(), key=lambda plan: (plan.time.total, plan.memory.total))[:most]


def plan_of(
    config: Config, channels: int, world_size: int, work: Work[float], longest: Work[float], device: Device
) -> Plan:
    """Memory, time and overrides of one layout whose recompute policy is resolved."""
    time = step_time(config, channels, world_size, work, device)
    mfu = step_flops(config, work) / world_size / device.peak / time.total
    return Plan(config, world_size, overrides_of(config), rank_memory(config, channels, world_size, longest), time, mfu)


def overrides_of(config: Config) -> tuple[str, ...]:
    """The layout as overrides that replace whatever a file says."""
    layout = config.parallel
    return (
        f"parallel.tensor={layout.tensor}",
        f"parallel.sequence={str(layout.sequence).lower()}",
        f"parallel.context={layout.context}",
        f"parallel.pipeline={layout.pipeline}",
        f"parallel.virtual_pipeline={layout.virtual_pipeline}",
        *(("parallel.pipeline_layers=[]",) if layout.pipeline > 1 else ()),
        f"parallel.recompute={layout.recompute}",
        f"parallel.recompute_layers={layout.recompute_layers}",
        f"train.micro_batch_size={config.train.micro_batch_size}",
    )


@dataclass(frozen=True)
class Speed:
    """MFU and FLOP/s of one device, and where they come from in words."""

    mfu: float
    flops: float
    source: str


def speed_of(config: Config, mfu: float | None) -> Speed:
    """What `--mfu` says, else the median that `train.output`/metrics.jsonl measured, else `MFU` of the peak."""
    peak = (config.logging.peak_tflops or PEAK_TFLOPS) * 1e12
    of = f"of {peak / 1e12:g} TFLOP/s" + ("" if config.logging.peak_tflops else ", an H100: logging.peak_tflops")
    if mfu is not None:
        return Speed(mfu, mfu * peak, f"as given, {of}")
    path = Path(config.train.output) / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        if path.is_file()
        else []
    )
    measured = [
        (line["mfu"], line["tflops_per_device"] * 1e12)
        for line in lines
        if line.get("mfu") and line.get("tflops_per_device")
    ]
    if measured:
        mfus, flops = zip(*measured)
        return Speed(statistics.median(mfus), statistics.median(flops), f"measured, the median of {path}")
    return Speed(MFU, MFU * peak, f"assumed: --mfu; {of}")


def run_days(config: Config, world_size: int, work: Work[float], speed: Speed) -> float:
    """Days that `train.steps` take at this speed."""
    return step_flops(config, work) * config.train.steps / (speed.flops * world_size) / 86400
