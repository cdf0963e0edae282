"""Communication of one optimizer step by parallel axis: calls and bytes per rank, and the time it takes on assumed
links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config.derived import dp_size, recomputed_layers, scores_rows_only, stage_layers
from ..config.schema import Config
from ..objective.work import Work
from .estimate import pipeline_parameters
from .memory import bytes_per_value, exchanged_groups, micro_batches

BUCKET = 40_000_000
"""Fewest parameters that megatron-core reduces in one call when gradients are reduced during the backward pass."""


@dataclass(frozen=True)
class Links:
    """What a rank sends per second, in bytes, and what a call takes beside that, in seconds: inside a node and between
    nodes.

    The defaults are assumptions, about two thirds of the data sheets' NVLink 4 (450 GB/s each way) and of one 400
    Gbit/s adapter for each GPU.
    """

    inside: float = 300e9
    between: float = 35e9
    latency_inside: float = 10e-6
    latency_between: float = 25e-6
    node: int = 8


@dataclass(frozen=True)
class Traffic:
    """One kind of call on one axis in a step, on the rank that does most of it.

    axis: TP, CP, PP or DP; group: ranks that take part; calls: number; size: bytes that a rank sends in all; inside:
    whether the group shares a node.
    """

    axis: str
    what: str
    group: int
    calls: float
    size: float
    inside: bool

    def seconds(self, links: Links) -> float:
        """Time of all calls, one after another."""
        if self.inside:
            return self.size / links.inside + self.calls * links.latency_inside
        return self.size / links.between + self.calls * links.latency_between


def inside_node(config: Config, world_size: int, axis: str, node: int = 8) -> bool:
    """Whether the ranks of an axis share a node of `node` devices: TP ranks are neighbours, then CP, then DP, then PP
    (megatron-core's order).
    """
    layout = config.parallel
    dense = layout.tensor * layout.context * dp_size(config, world_size)
    span = {"TP": layout.tensor, "CP": layout.tensor * layout.context, "DP": dense, "PP": dense * layout.pipeline}[axis]
    return span <= node and node % span == 0


def traffic(config: Config, channels: int, world_size: int, row: Work[float], node: int = 8) -> list[Traffic]:
    """Everything the busiest rank sends in one step.  row: a micro-batch, on average.  `parallel.recompute` must be
    resolved.

    All-gathers and reduce-scatters send (n-1)/n of the whole tensor per rank, all-reduces twice that, all-to-alls
    (n-1)/n of the rank's own part.
    """
    layout, tokens = config.parallel, row.tokens
    found = (
        _tensor(config, row)
        + _context(config, tokens)
        + _pipeline(config, tokens)
        + _data(config, channels, world_size)
    )
    count = micro_batches(config, world_size)
    groups = {
        "TP": layout.tensor,
        "CP": layout.context,
        "PP": layout.pipeline,
        "DP": dp_size(config, world_size) * layout.context,
    }
    found = [
        (axis, what, calls, size) if axis == "DP" else (axis, what, calls * count, size * count)
        for axis, what, calls, size in found
    ]
    return [
        Traffic(axis, what, groups[axis], calls, size, inside_node(config, world_size, axis, node))
        for axis, what, calls, size in found
        if groups[axis] > 1
    ]


Item = tuple[str, str, float, float]


def _busiest(config: Config) -> tuple[int, int]:
    """(layers, recomputed layers) of the pipeline rank with most of both."""
    layout, layers = config.parallel, stage_layers(config)
    mine = [layers[rank :: layout.pipeline] for rank in range(layout.pipeline)]
    return max((sum(own), sum(recomputed_layers(layout, own))) for own in mine)


def _tensor(config: Config, row: Work[float]) -> list[Item]:
    """Of one micro-batch.  Attention and feed-forward each end in a sum over ranks, and so does each of their backward
    passes; with sequence parallelism the sums are reduce-scatters, inputs are gathered, and the backward pass gathers
    them once more for the weights' gradients.

    Where the last layer computes scored rows only, all its sums but the gradient of its input are shorter; in a
    pipeline another rank is the busiest.
    """
    layout = config.parallel
    layers, again = _busiest(config)
    repeats = {"full": 2, "mlp": 1}.get(layout.recompute, 0)
    repeated = again * repeats
    whole = (
        bytes_per_value(config)
        * row.tokens
        / layout.context
        * config.model.hidden_size
        * (layout.tensor - 1)
        / layout.tensor
    )
    if not layout.sequence:
        calls = 4 * layers + repeated
        shorter = 3 + repeats * (again == layers)
        dropped = shorter * (1 - row.scored / row.tokens) if scores_rows_only(layout) and layout.pipeline == 1 else 0
        return [("TP", "all-reduce", calls, 2 * whole * (calls - dropped))]
    # The embedding's gradient is gathered, and so is the head's input: on one rank or on two.
    gathers, scatters = 6 * layers + repeated + (2 if layout.pipeline == 1 else 1), 4 * layers + repeated
    return [("TP", "all-gather", gathers, whole * gathers), ("TP", "reduce-scatter", scatters, whole * scatters)]


def _context(config: Config, tokens: float) -> list[Item]:
    """Of one micro-batch: queries, keys and values there, the output back, and the same in the backward pass."""
    model, layout = config.model, config.parallel
    layers, again = _busiest(config)
    passes = 2 * layers + (again if layout.recompute == "full" else 0)
    share = (
        bytes_per_value(config)
        * tokens
        / layout.context
        / layout.tensor
        * model.head_dim
        * (layout.context - 1)
        / layout.context
    )
    joined = model.num_attention_heads + 2 * exchanged_groups(config)
    return [
        ("CP", "all-to-all of q, k, v", passes, passes * share * joined),
        ("CP", "all-to-all of the output", passes, passes * share * model.num_attention_heads),
    ]


def _pipeline(config: Config, tokens: float) -> list[Item]:
    """Of one micro-batch: hidden states to the next stage and gradients back, on a rank in the middle (at an end of a
    pipeline of two).
    """
    layout = config.parallel
    shard = (
        bytes_per_value(config)
        * tokens
        * config.model.hidden_size
        / layout.context
        / (layout.tensor if layout.sequence else 1)
    )
    stages = range(layout.stages)
    sends = [
        sum((s < layout.stages - 1) + (s > 0) for s in stages[rank :: layout.pipeline])
        for rank in range(layout.pipeline)
    ]
    return [("PP", "send", max(sends), max(sends) * shard)]


def _data(config: Config, channels: int, world_size: int) -> list[Item]:
    """Of one step: float32 gradients are summed and sharded over data and context parallel ranks, updated parameters
    gathered.
    """
    layout = config.parallel
    ranks = dp_size(config, world_size) * layout.context
    held = max(pipeline_parameters(config, channels))
    bucket = layout.bucket_size or max(BUCKET, 1_000_000 * ranks)
    calls = math.ceil(held / bucket) if layout.overlap_grad_reduce else layout.virtual_pipeline
    share = held * (ranks - 1) / ranks
    return [
        ("DP", "reduce-scatter of gradients", calls, 4 * share),
        ("DP", "all-gather of parameters", calls, bytes_per_value(config) * share),
    ]
