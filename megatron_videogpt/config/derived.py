"""What follows from a configuration alone: never stored, always asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import UserError
from .schema import Config, ParallelConfig


def in_precision(config: Config, precision: str) -> Config:
    """The configuration with `train.precision` "bf16" or "fp32"; nothing may be built while it is "auto"."""
    return replace(config, train=replace(config.train, precision=precision))


def dp_size(config: Config, world_size: int) -> int:
    """Data parallel ranks in a world of `world_size` processes."""
    return world_size // config.parallel.model_size


def stage_layers(config: Config) -> tuple[int, ...]:
    """Decoder layers of each pipeline stage, PP x VPP numbers in order: stage ``vpp_rank * PP + pp_rank``.

    `parallel.pipeline_layers` where it is given.  Otherwise an even spread, in which the layers that are left over go
    to the middle stages, the later ones first: the first and last stage carry the embedding and the head, and earlier
    ranks hold more micro-batches in flight.
    """
    layout = config.parallel
    if layout.pipeline_layers:
        return layout.pipeline_layers
    each, rest = divmod(config.model.num_layers, layout.stages)
    favoured = [*range(layout.stages - 2, 0, -1), layout.stages - 1, 0][:rest]
    return tuple(each + (stage in favoured) for stage in range(layout.stages))


def recomputed_layers(layout: ParallelConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """Of each model chunk of a pipeline rank with these decoder layers, how many `parallel.recompute_layers` names:
    earlier chunks first.
    """
    if layout.recompute not in ("mlp", "full"):
        return (0,) * len(layers)
    left = layout.recompute_layers or sum(layers)
    counts = []
    for count in layers:
        counts.append(min(count, left))
        left -= counts[-1]
    return tuple(counts)


def scores_rows_only(layout: ParallelConfig) -> bool:
    """Whether the last layer drops, once it has keys and values of all rows, the rows whose output nobody reads
    (`model/self_attention.py`).

    Shards of a row would come out of unequal length.
    """
    return layout.context == 1 and not layout.sequence


def frame_side(config: Config) -> int:
    """Longer side of a training frame in pixels."""
    return config.data.physics.size if config.data.source == "physics" else config.data.longest_side


def typical_frame(config: Config) -> tuple[int, int]:
    """(height, width) in pixels: the physics frame, or a 16:9 video after resizing and cropping, but none lower than
    `data.size_multiple`.
    """
    if config.data.source == "physics":
        return config.data.physics.size, config.data.physics.size
    multiple, side = config.data.size_multiple, config.data.longest_side
    return max(multiple, side * 9 // 16 // multiple * multiple), side // multiple * multiple


def require_positions(config: Config, needed: int, what: str) -> None:
    """UserError where so many positions, of `what`, are more than the model's learned ones."""
    rows = config.model.max_position_embeddings
    if config.model.positions == "learned" and needed > rows:
        raise UserError(
            f"model.max_position_embeddings = {rows}: must be at least {needed}, the positions of {what}, with "
            f"model.positions = learned; use {needed}, or fewer frames, or model.positions=rope"
        )
