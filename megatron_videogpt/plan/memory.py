"""Memory of a training rank by component, and the recomputation that makes it fit.

Which tensors a layer keeps for the backward pass is written down here by hand for this project's own layers
(`model/layers.py`, `model/recompute.py`, `attention/ranged.py`).  Tests compare it with what autograd really saves, and
whole runs with measured peaks (tools/measure_memory.py); docs/planner.md says what is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..config.derived import dp_size, recomputed_layers, scores_rows_only, stage_layers
from ..config.schema import Config
from ..objective.work import Work
from .communicators import communicator_bytes
from .estimate import packed_rows, pipeline_parameters

POLICIES = ("none", "selective", "mlp", "full")
"""Recompute policies, least first."""

RESERVE = 0.08
"""Share of a device's memory that plans leave free: the CUDA context, NCCL's buffers, fragmentation and kernels'
workspaces.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    optimizer: Adam's moments and, for bf16, the float32 main parameters; ema: the averaged weights; working: what lives
    for moments only while the activations are at their fullest (gathered shards, gradients of activations, one weight's
    gradient, a layer that is computed again); update: what the optimizer step needs for moments, after the activations
    are gone; communicators: HCCL's buffers, which the device's allocator does not count.
    """

    parameters: float
    gradients: float
    optimizer: float
    ema: float
    activations: float
    working: float
    update: float
    communicators: float = 0.0

    @property
    def states(self) -> float:
        """What stays between steps."""
        return self.parameters + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> float:
        """The peak; the framework itself comes on top."""
        return self.allocated + self.communicators

    @property
    def allocated(self) -> float:
        """The peak that the device's allocator sees."""
        return self.states + max(self.activations + self.working, self.update)


@dataclass(frozen=True)
class LayerBytes:
    """One decoder layer's tensors on one rank, for a whole packed row, in bytes.

    stream: the hidden states that come in; tail: those after attention, fewer in the last layer (`scores_rows_only`);
    statistics: both norms' numbers per row; attention: queries, keys, values, output and log-sum-exp; inner: F channels
    of the feed-forward; wide: how many times F its first matrix gives, 2 with a gate; gathered: the hidden states that
    sequence parallelism gathers (0 without); backward: attention's float32 sums and copies of gradients; weight: the
    gradient of the largest weight.  Dropout keeps nothing: its mask is drawn again.
    """

    stream: float
    tail: float
    statistics: float
    attention: float
    inner: float
    wide: int
    gathered: float
    backward: float
    weight: float

    def kept(self, policy: str) -> float:
        """What one layer keeps from its forward to its backward pass, if it is among those that
        the policy recomputes.
        """
        if policy == "full":
            return self.stream
        # Of each norm the input, and without recomputation also the output and a number per row.
        norms = self.stream + self.tail + (self.stream + self.tail + self.statistics if policy == "none" else 0.0)
        return norms + self.attention + self._kept_inner(policy)

    def working(self, policy: str) -> float:
        """What the backward pass of one such layer adds at most, while the layers before it still keep theirs."""
        # The feed-forward's gradients of the product and of what its first matrix gave, beside what is computed again;
        # without recomputation they partly take the place of what was kept.
        wide = self.wide
        feed_forward = {"none": wide, "selective": 2 + wide, "mlp": 1 + 2 * wide, "full": wide}[policy] * self.inner
        attention = self.backward - self._kept_inner("none" if policy == "full" else policy)
        again = {"none": 0.0, "full": self.kept("none")}.get(policy, self.stream + self.statistics / 2)
        return again + max(feed_forward, attention) + 2 * self.stream + 2 * self.gathered + self.weight

    def _kept_inner(self, policy: str) -> float:
        """Of the feed-forward: what its activation and its second matrix got."""
        return {"none": self.wide + 1, "selective": self.wide, "mlp": 0}[policy] * self.inner


def bytes_per_value(config: Config) -> int:
    """Of parameters and activations."""
    return 4 if config.train.precision == "fp32" else 2


def layer_bytes(config: Config, tokens: float, rows: float | None = None) -> LayerBytes:
    """`LayerBytes` of a row of `tokens` tokens, context parallel shards not yet cut.  rows: that a last layer computes,
    None for all.
    """
    model, layout, width = config.model, config.parallel, bytes_per_value(config)
    shard = tokens / layout.context
    share = 1.0 if rows is None else rows / tokens
    local = shard / (layout.tensor if layout.sequence else 1)
    heads, groups = (
        count * model.head_dim / layout.tensor for count in (model.num_attention_heads, exchanged_groups(config))
    )
    # Queries and output; an exchange keeps the output on both sides.
    queries = (2 if layout.context == 1 else 3) * heads
    sums = 4 * model.num_attention_heads / layout.tensor
    exchange = 0.0 if layout.context == 1 else 2 * width * shard * (heads + 2 * groups)
    inner, wide = model.ffn_hidden_size / layout.tensor, 2 if model.gated else 1
    stream = width * local * model.hidden_size
    return LayerBytes(
        stream=stream,
        tail=share * stream,
        # LayerNorm keeps a mean beside the reciprocal deviation.
        statistics=(1 + share) * (8 if model.norm == "layer" else 4) * local,
        attention=shard * (share * (width * queries + sums) + width * 2 * groups),
        inner=share * width * shard * inner,
        wide=wide,
        gathered=width * shard * model.hidden_size if layout.sequence else 0.0,
        backward=(12 + width) * shard * heads + exchange,
        weight=width * wide * inner * model.hidden_size,
    )


def exchanged_groups(config: Config) -> int:
    """Key/value heads after the repetition that an exchange over context parallel ranks asks for, over all tensor
    parallel ranks.
    """
    tensor = config.parallel.tensor
    return tensor * math.lcm(max(1, config.model.kv_heads // tensor), config.parallel.context)


def micro_batches(config: Config, world_size: int) -> int:
    """Micro-batches of one data parallel rank in a step."""
    if config.data.pack_tokens:
        return packed_rows(config, world_size)
    return max(1, config.train.global_batch_size // (dp_size(config, world_size) * config.train.micro_batch_size))


@lru_cache(maxsize=4096)
def in_flight(pipeline: int, chunks: int, rank: int, count: int) -> list[tuple[int, ...]]:
    """For each moment at which a pipeline rank has most under way: micro-batches of each of its chunks between forward
    and backward.

    One forward, one backward (megatron-core's schedules): a warm-up of forwards, then one backward after each forward.
    Of an interleaved schedule every distinct moment is listed, because chunks differ in weight.
    """
    if chunks == 1:
        return [(min(pipeline - rank, count),)]
    order = [
        chunk
        for start in range(0, count, pipeline)
        for chunk in range(chunks)
        for _ in range(min(pipeline, count - start))
    ]
    warm = min(len(order), 2 * (pipeline - rank - 1) + (chunks - 1) * pipeline)
    held, moments = [0] * chunks, set()
    # Backward passes visit the chunks in the opposite order.
    backward = iter([chunks - 1 - chunk for chunk in order])
    for number, chunk in enumerate(order):
        held[chunk] += 1
        if number >= warm or number == len(order) - 1:
            moments.add(tuple(held))
            held[next(backward)] -= 1
    return sorted(moments)


def stage_activations(
    config: Config, layer: LayerBytes, last: LayerBytes, rank: int, count: int
) -> tuple[float, float]:
    """(kept, working) bytes of pipeline rank `rank` with `count` micro-batches a step, without the head.  The policy
    must be resolved.

    last: the model's last layer; layer: any other.
    """
    layout = config.parallel
    layers = stage_layers(config)[rank :: layout.pipeline]
    recomputed = recomputed_layers(layout, layers)
    policy = layout.recompute
    rest = "none" if policy == "full" else "selective" if policy == "mlp" else policy
    has_last = rank == layout.pipeline - 1 and layers[-1] > 0
    of_last = policy if recomputed[-1] == layers[-1] else rest
    chunks = [
        again * layer.kept(policy) + (total - again) * layer.kept(rest) for total, again in zip(layers, recomputed)
    ]
    if has_last:
        chunks[-1] -= layer.kept(of_last) - last.kept(of_last)
    if layout.pipeline > 1:
        # The schedule holds what a stage sent; what it received its first layer keeps anyway.
        chunks = [
            kept + layer.stream * (rank < layout.pipeline - 1 or number < len(layers) - 1)
            for number, kept in enumerate(chunks)
        ]
    moments = in_flight(layout.pipeline, layout.virtual_pipeline, rank, count)
    # The last layer of a chunk runs its backward first, when all others still keep theirs; recomputed layers lead.
    whole = any(again == total for total, again in zip(layers, recomputed))
    working = layer.working(policy if policy in ("none", "selective") or whole else rest)
    if policy == "full" and not whole and any(recomputed):
        freed = min(total - again for total, again in zip(layers, recomputed) if again)
        working = max(working, layer.working("full") - freed * layer.kept("none"))
    if has_last and len(layers) == 1:
        # The layer before works when the last one's are gone.
        working = max(last.working(of_last), working - last.kept(of_last) if layers[0] > 1 else 0.0)
    return max(sum(held * kept for held, kept in zip(moment, chunks)) for moment in moments), working


def head_bytes(config: Config, layer: LayerBytes, work: Work[float]) -> tuple[float, float]:
    """(kept, working) bytes of the final norm and the head; the embedding keeps nothing but row numbers."""
    width = bytes_per_value(config)
    scored = width * config.model.hidden_size / config.parallel.context * work.scored
    normed = scored if scores_rows_only(config.parallel) else layer.stream
    # Input and statistics of the final norm; then of each scored token input and result of the layer norm, scale and
    # scaled result.
    numbers = 8 if config.model.norm == "layer" else 4
    kept = normed * (1 + numbers / width / config.model.hidden_size) + 4 * scored
    # The head's own backward, then that of the final norm in float32.
    return kept, max(4 * scored + normed, 16 * normed / width + 2 * normed - 4 * scored)


def pipeline_memory(config: Config, channels: int, world_size: int, work: Work[float]) -> list[Memory]:
    """Memory of each pipeline rank while it trains micro-batches as large as `work` (a packed row).
    `parallel.recompute` must be resolved.
    """
    layout, width = config.parallel, bytes_per_value(config)
    layer, count = layer_bytes(config, work.tokens), micro_batches(config, world_size)
    last = layer_bytes(config, work.tokens, work.scored if scores_rows_only(layout) else None)
    sharded = dp_size(config, world_size) * layout.context
    memories = []
    for rank, held in enumerate(pipeline_parameters(config, channels)):
        kept, working = stage_activations(config, layer, last, rank, count)
        head, head_working = head_bytes(config, layer, work) if rank == layout.pipeline - 1 else (0.0, 0.0)
        memories.append(
            Memory(
                parameters=width * held,
                gradients=4 * held,
                optimizer=(12 if width == 2 else 8) * held / sharded,
                ema=4 * held / sharded if config.optimizer.ema_decay else 0.0,
                activations=kept + head,
                working=max(working - head, head_working),
                update=4 * held / sharded,
                communicators=communicator_bytes(config, world_size),
            )
        )
    return memories


def rank_memory(config: Config, channels: int, world_size: int, work: Work[float]) -> Memory:
    """Memory of the fullest rank; see `pipeline_memory`."""
    return max(pipeline_memory(config, channels, world_size, work), key=lambda memory: memory.total)
