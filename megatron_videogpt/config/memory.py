"""Memory of a training rank by component, and the recomputation that makes it fit.

Which tensors a layer keeps for the backward pass is written down here by hand for this project's own layers (`model/layers.py`,
`model/recompute.py`, `attention/ranged.py`).  Tests compare it with what autograd really saves, and whole runs with measured peaks
(tools/measure_memory.py); docs/planner.md says what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .estimate import Work, attention_flops, dp_size, layer_parameters, longest_row, pipeline_parameters, stage_layers
from .schema import Config, ParallelConfig

POLICIES = ("none", "selective", "mlp", "full")
"""Recompute policies, least first."""

RESERVE = 0.08
"""Share of a device's memory that plans leave free: the CUDA context, communication buffers, fragmentation and kernels' workspaces."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    optimizer: Adam's moments and, for bf16, the float32 main parameters; ema: the averaged weights; working: what lives for moments only while the
    activations are at their fullest (gathered shards, gradients of activations, one weight's gradient, a layer that is computed again);
    update: what the optimizer step needs for moments, after the activations are gone.
    """

    parameters: float
    gradients: float
    optimizer: float
    ema: float
    activations: float
    working: float
    update: float

    @property
    def states(self) -> float:
        """What stays between steps."""
        return self.parameters + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> float:
        """The peak; the framework itself comes on top."""
        return self.states + max(self.activations + self.working, self.update)


@dataclass(frozen=True)
class LayerBytes:
    """One decoder layer's tensors on one rank, for a whole packed row, in bytes.

    stream: the hidden states; norm: what one RMSNorm keeps without recomputation; attention: queries, keys, values, output, log-sum-exp and rotary
    tables; inner: F channels of the feed-forward; gathered: the hidden states that sequence parallelism gathers (0 without);
    backward: attention's float32 sums and copies of gradients; weight: the gradient of the largest weight.
    """

    stream: float
    norm: float
    attention: float
    inner: float
    gathered: float
    backward: float
    weight: float

    def kept(self, policy: str) -> float:
        """What one layer keeps from its forward to its backward pass, if it is among those that the policy recomputes."""
        if policy == "full":
            return self.stream
        norms = 2 * self.norm if policy == "none" else 2 * self.stream
        return norms + self.attention + {"none": 4, "selective": 2, "mlp": 0}[policy] * self.inner

    def working(self, policy: str) -> float:
        """What the backward pass of one such layer adds at most, while the layers before it still keep theirs."""
        # Measured operation by operation: gradients of silu, gate and up and of both joined, beside what is computed again; without recomputation
        # some of them take the place of what was kept.
        feed_forward = {"none": 2, "selective": 4, "mlp": 5, "full": 3}[policy] * self.inner
        attention = self.backward - {"none": 4, "selective": 2, "mlp": 0, "full": 4}[policy] * self.inner
        again = {"none": 0.0, "full": self.kept("none")}.get(policy, self.norm)
        return again + max(feed_forward, attention) + 2 * self.stream + 2 * self.gathered + self.weight


def bytes_per_value(config: Config) -> int:
    """Of parameters and activations."""
    return 2 if config.train.precision == "bf16" else 4


def layer_bytes(config: Config, tokens: float) -> LayerBytes:
    """`LayerBytes` of a row of `tokens` tokens, context parallel shards not yet cut."""
    model, layout, width = config.model, config.parallel, bytes_per_value(config)
    shard = tokens / layout.context
    local = shard / (layout.tensor if layout.sequence else 1)
    heads, groups = (count * model.head_dim / layout.tensor for count in (model.num_attention_heads, exchanged_groups(config)))
    # Without an exchange the values stay a view of the joint projection, which therefore stays whole beside the rotated queries and keys.
    channels = 3 * heads + 3 * groups if layout.context == 1 else 3 * heads + 2 * groups
    statistics = 4 * shard * model.num_attention_heads / layout.tensor
    rotary = 4 * width * shard * model.head_dim
    exchange = 0.0 if layout.context == 1 else 2 * width * shard * (heads + 2 * groups)
    inner = model.ffn_hidden_size / layout.tensor
    return LayerBytes(
        stream=width * local * model.hidden_size,
        # The float32 input, the result before the weight and the one after it.
        norm=(4 + 2 * width) * local * model.hidden_size + 4 * local,
        attention=width * shard * channels + statistics + rotary,
        inner=width * shard * inner,
        gathered=width * shard * model.hidden_size if layout.sequence else 0.0,
        backward=(12 + width) * shard * heads + exchange,
        weight=width * 2 * inner * model.hidden_size,
    )


def exchanged_groups(config: Config) -> int:
    """Key/value heads after the repetition that an exchange over context parallel ranks asks for, over all tensor parallel ranks."""
    tensor = config.parallel.tensor
    return tensor * math.lcm(max(1, config.model.kv_heads // tensor), config.parallel.context)


def recomputed_layers(layout: ParallelConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """Of each model chunk of a pipeline rank with these decoder layers, how many `parallel.recompute_layers` names: earlier chunks first."""
    if layout.recompute not in ("mlp", "full"):
        return (0,) * len(layers)
    left = layout.recompute_layers or sum(layers)
    counts = []
    for count in layers:
        counts.append(min(count, left))
        left -= counts[-1]
    return tuple(counts)


def micro_batches(config: Config, world_size: int) -> int:
    """Micro-batches of one data parallel rank in a step."""
    return max(1, config.train.global_batch_size // (dp_size(config, world_size) * config.train.micro_batch_size))


@lru_cache(maxsize=4096)
def in_flight(pipeline: int, chunks: int, rank: int, count: int) -> list[tuple[int, ...]]:
    """For each moment at which a pipeline rank has most under way: micro-batches of each of its chunks between forward and backward.

    One forward, one backward (megatron-core's schedules): a warm-up of forwards, then one backward after each forward.  Of an interleaved schedule
    every distinct moment is listed, because chunks differ in weight.
    """
    if chunks == 1:
        return [(min(pipeline - rank, count),)]
    order = [chunk for start in range(0, count, pipeline) for chunk in range(chunks) for _ in range(min(pipeline, count - start))]
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


def stage_activations(config: Config, layer: LayerBytes, rank: int, count: int) -> tuple[float, float]:
    """(kept, working) bytes of pipeline rank `rank` with `count` micro-batches a step, without embedding and head.  The policy must be resolved."""
    layout, width = config.parallel, bytes_per_value(config)
    layers = stage_layers(config)[rank :: layout.pipeline]
    policy = layout.recompute
    rest = "none" if policy == "full" else "selective" if policy == "mlp" else policy
    chunks = []
    for number, (total, again) in enumerate(zip(layers, recomputed_layers(layout, layers))):
        kept = again * layer.kept(policy) + (total - again) * layer.kept(rest)
        if layout.pipeline > 1:
            # The schedule holds what a stage received, where no layer keeps it anyway, and what it sent.
            received = (rank or number) and (width == 2 and rest == "none" and not (policy == "full" and again))
            sent = not (rank == layout.pipeline - 1 and number == len(layers) - 1)
            kept += layer.stream * (bool(received) + sent)
        chunks.append(kept)
    moments = in_flight(layout.pipeline, layout.virtual_pipeline, rank, count)
    # The last layer of a chunk runs its backward first, when all others still keep theirs; recomputed layers lead.
    whole = any(again == total for total, again in zip(layers, recomputed_layers(layout, layers)))
    working = layer.working(policy if policy in ("none", "selective") or whole else rest)
    if policy == "full" and not whole and any(recomputed_layers(layout, layers)):
        freed = min(total - again for total, again in zip(layers, recomputed_layers(layout, layers)) if again)
        working = max(working, layer.working("full") - freed * layer.kept("none"))
    return max(sum(held * kept for held, kept in zip(moment, chunks)) for moment in moments), working


def ends(config: Config, layer: LayerBytes, work: Work, rank: int, count: int) -> tuple[float, float, float]:
    """(embedding kept, head kept, head working) bytes that pipeline rank `rank` has beside its layers."""
    model, layout, width = config.model, config.parallel, bytes_per_value(config)
    embedding = head = working = 0.0
    row = width * model.hidden_size / layout.context
    if rank == 0:
        moments = in_flight(layout.pipeline, layout.virtual_pipeline, rank, count)
        embedding = max(moment[0] for moment in moments) * row * work.tokens
    if rank == layout.pipeline - 1:
        noisy = row * work.noisy * work.patches
        # The final norm without its output, then of each noisy patch: input and result of the layer norm, scale and scaled result.
        head = layer.norm - layer.stream + 4 * noisy
        # The head's own backward, then that of the final norm in float32.
        working = max(4 * noisy + row * work.tokens, 16 * layer.stream / width + 2 * layer.stream - 4 * noisy)
    return embedding, head, working


def pipeline_memory(config: Config, channels: int, world_size: int, work: Work) -> list[Memory]:
    """Memory of each pipeline rank while it trains micro-batches as large as `work` (a packed row).  `parallel.recompute` must be resolved."""
    layout, width = config.parallel, bytes_per_value(config)
    layer, count = layer_bytes(config, work.tokens), micro_batches(config, world_size)
    sharded = dp_size(config, world_size) * layout.context
    memories = []
    for rank, held in enumerate(pipeline_parameters(config, channels)):
        kept, working = stage_activations(config, layer, rank, count)
        embedding, head, head_working = ends(config, layer, work, rank, count)
        memories.append(
            Memory(
                parameters=width * held,
                gradients=4 * held,
                optimizer=(12 if width == 2 else 8) * held / sharded,
                ema=4 * held / sharded if config.optimizer.ema_decay else 0.0,
                activations=kept + embedding + head,
                working=max(working - head, head_working),
                update=4 * held / sharded,
            )
        )
    return memories


def rank_memory(config: Config, channels: int, world_size: int, work: Work) -> Memory:
    """Memory of the fullest rank; see `pipeline_memory`."""
    return max(pipeline_memory(config, channels, world_size, work), key=lambda memory: memory.total)


def with_policy(config: Config, policy: str, layers: int = 0) -> Config:
    """The configuration with another recompute policy."""
    return replace(config, parallel=replace(config.parallel, recompute=policy, recompute_layers=layers))


def recomputed_flops(config: Config, channels: int, work: Work) -> dict[str, float]:
    """FLOPs, on all ranks together, that one more layer costs under each policy for a row of this work."""
    model = config.model
    whole = 2 * layer_parameters(model, channels) * work.tokens + attention_flops(model, work.pairs) / model.num_layers / 3
    return {"none": 0.0, "selective": 0.0, "mlp": 6 * model.hidden_size * model.ffn_hidden_size * work.tokens, "full": whole}


def recompute_choices(config: Config, channels: int, work: Work) -> list[Config]:
    """Every recompute policy with every number of layers, least FLOPs first."""
    per_rank = max(sum(stage_layers(config)[rank :: config.parallel.pipeline]) for rank in range(config.parallel.pipeline))
    cost = recomputed_flops(config, channels, work)
    counted = [(policy, count) for policy in ("mlp", "full") for count in range(1, per_rank + 1)]
    names = [("none", 0), ("selective", 0), *sorted(counted, key=lambda name: name[1] * cost[name[0]])]
    return [with_policy(config, *name) for name in names]


def least_recompute(config: Config, world_size: int, channels: int, work: Work, memory_bytes: float) -> Config | None:
    """The configuration with the least recomputation (in FLOPs) whose fullest rank fits `memory_bytes` less `RESERVE`; None if none does."""
    limit = memory_bytes * (1 - RESERVE)
    choices = recompute_choices(config, channels, work)
    return next((choice for choice in choices if rank_memory(choice, channels, world_size, work).total <= limit), None)


def resolve_recompute(config: Config, world_size: int, channels: int, memory_bytes: float, frame: tuple[int, int] | None = None) -> Config:
    """`parallel.recompute = auto` replaced by the least recomputation that fits `memory_bytes`, for the longest row that the data can give.

    frame: (height, width) in pixels, None for the largest that the data options allow.  Other policies pass through.  Raises ValueError, one line,
    if even `full` does not fit.
    """
    if config.parallel.recompute != "auto":
        return config
    work = longest_row(config, frame)
    chosen = least_recompute(config, world_size, channels, work, memory_bytes)
    if chosen is None:
        need = rank_memory(with_policy(config, "full"), channels, world_size, work).total / (1 - RESERVE)
        raise ValueError(
            f"parallel.recompute = auto: rows of {work.tokens:,.0f} tokens need {need / 1e9:.1f} GB even with full recomputation, and a device has "
            f"{memory_bytes / 1e9:.1f} GB; use more parallel.tensor, parallel.context or parallel.pipeline "
            "(`python -m megatron_videogpt check` proposes layouts)"
        )
    return chosen
