"""Parameters, sequence lengths and FLOPs of a configuration, before anything is built; `memory`, `communication` and
`planner` go on from here.

Parameters are counted from the same table that names and initialises them (`model.parameters`), so they are exact.
Sequence lengths, attended pairs and FLOPs are the objective's closed forms (`objective.work`): exact, or exact
expectations over its random draws.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from ..codec.geometry import CodecGeometry, expected_geometry
from ..codec.options import CodecConfig
from ..config.derived import dp_size, frame_side, recomputed_layers, scores_rows_only, stage_layers, typical_frame
from ..config.schema import Config, ParallelConfig
from ..model.flops import (
    attention_flops,
    feed_forward_weights,
    layer_parameters,
    query_parameters,
    sharded_parameters,
    training_flops,
    unscored_flops,
)
from ..objective.build import parameter_table, work_of
from ..objective.work import ObjectiveWork, Work


def pipeline_parameters(config: Config, channels: int) -> tuple[int, ...]:
    """Parameters held by each pipeline rank: tensor parallel shards of the layers of its stages, and the embedding or
    the head at the ends.
    """
    model, layout = config.model, config.parallel
    layer, first, last = sharded_parameters(parameter_table(config), model, channels, layout.tensor)
    counts = [0] * layout.pipeline
    for stage, layers in enumerate(stage_layers(config)):
        counts[stage % layout.pipeline] += layers * layer
    counts[0] += first
    counts[-1] += last
    return tuple(counts)


def rank_parameters(config: Config, channels: int) -> int:
    """Parameters on the rank that holds most."""
    return max(pipeline_parameters(config, channels))


def objective_work(config: Config) -> ObjectiveWork:
    """The closed forms of the configured objective, before the codec is loaded."""
    return work_of(config, _geometry(config.codec))


# A planner asks thousands of times, and a geometry lies in a file.
@lru_cache(maxsize=64)
def _geometry(codec: CodecConfig) -> CodecGeometry:
    return expected_geometry(codec)


def step_flops(config: Config, work: Work[float]) -> float:
    """Model FLOPs of an optimizer step with samples of this mean work."""
    one = training_flops(config.model, objective_work(config).weights, work.tokens, work.pairs)
    return one * config.train.global_batch_size


def sample_flops(config: Config, work: Work[float]) -> float:
    """FLOPs of the forward and backward pass over a sample of this mean work, in any layout and with nothing computed
    again: those of `hardware_flops` in one process, which are the products that torch counts, attention on attended
    pairs.
    """
    alone = replace(config, parallel=ParallelConfig())
    read = work.pairs * work.scored / work.tokens if work.scored_pairs is None else work.scored_pairs
    unscored = work.tokens - work.scored, work.pairs - read
    return hardware_flops(alone, objective_work(config).weights, work.tokens, work.pairs, unscored)


def longest_row(config: Config, frame: tuple[int, int] | None = None) -> Work[float]:
    """The longest micro-batch that a run can meet: `micro_batch_size` samples of the longest split, of `frame` pixels
    (None: square frames); with `data.pack_tokens` a full row of them.
    """
    one = objective_work(config).largest(frame or (frame_side(config),) * 2)
    return one.times(config.data.pack_tokens / one.tokens if config.data.pack_tokens else config.train.micro_batch_size)


def mean_row(config: Config, world_size: int, work: Work[float]) -> Work[float]:
    """A mean micro-batch of samples of this mean work."""
    if not config.data.pack_tokens:
        return work.times(config.train.micro_batch_size)
    return work.times(config.train.global_batch_size / dp_size(config, world_size) / packed_rows(config, world_size))


def packed_rows(config: Config, world_size: int) -> int:
    """Micro-batches of one data parallel rank in a step with `data.pack_tokens`, for samples of mean length and typical
    frames.
    """
    layout, tokens = config.parallel, objective_work(config).expected(typical_frame(config)).tokens
    rows = math.ceil(config.train.global_batch_size / dp_size(config, world_size) * tokens / config.data.pack_tokens)
    step = layout.pipeline if layout.virtual_pipeline > 1 else 1
    return math.ceil(rows / step) * step


def hardware_flops(
    config: Config,
    weights: tuple[float, float],
    tokens: float,
    pairs: float,
    unscored: tuple[float, float] = (0.0, 0.0),
) -> float:
    """FLOPs that devices execute for one forward and backward pass: `training_flops`, what of it the last layer
    computes in vain, and what activation recomputation repeats.

    `full` repeats a layer's forward pass with its attention, `mlp` the products of its feed-forward, `selective`
    nothing that counts.  The scores that attention kernels compute again in their own backward pass do not count: they
    are part of the algorithm (Dao et al. 2022), not a choice of the run, and utilisation stays comparable with
    published figures.  Nor do pairs that a kernel computes in vain in tiles that attend in part. Raises ValueError
    where `parallel.recompute` is still `auto`.
    """
    # `memory` builds on this module.

    model, layout = config.model, config.parallel
    if layout.recompute == "auto":
        raise ValueError("parallel.recompute=auto has no FLOPs yet: resolve it with memory.resolve_recompute first")
    ranks = [stage_layers(config)[rank :: layout.pipeline] for rank in range(layout.pipeline)]
    again = [recomputed_layers(layout, layers) for layers in ranks]
    total = training_flops(model, weights, tokens, pairs)
    repeated, skipped = _repeated(config, tokens, pairs, unscored)
    total += repeated * sum(map(sum, again))
    if scores_rows_only(layout):
        # Queries of all rows are projected together with keys and values.
        queries = 6 * query_parameters(model) * unscored[0]
        total -= unscored_flops(model, *unscored) - queries
        total -= skipped if again[-1][-1] == ranks[-1][-1] else 0.0
    return total


def _repeated(config: Config, tokens: float, pairs: float, unscored: tuple[float, float]) -> tuple[float, float]:
    """FLOPs that the backward pass repeats for one layer that recomputes, and how many fewer these are in a last layer
    that drops its unscored rows.
    """
    model = config.model
    products = 2 * feed_forward_weights(model)
    if config.parallel.recompute != "full":
        return products * tokens, products * unscored[0]
    forward = 2 * layer_parameters(model) * tokens + attention_flops(model, pairs) / model.num_layers / 3
    queries = 2 * query_parameters(model) * unscored[0]
    return forward, unscored_flops(model, *unscored) / 3 - queries
