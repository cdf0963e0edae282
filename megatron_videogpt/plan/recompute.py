"""The least recomputation that fits a memory: `parallel.recompute = auto`."""

from __future__ import annotations

from dataclasses import replace

from ..config.derived import stage_layers
from ..config.schema import Config
from ..errors import UserError
from ..model.flops import attention_flops, feed_forward_weights, layer_parameters
from ..objective.work import Work
from .estimate import longest_row
from .memory import RESERVE, rank_memory


def with_policy(config: Config, policy: str, layers: int = 0) -> Config:
    """The configuration with another recompute policy."""
    return replace(config, parallel=replace(config.parallel, recompute=policy, recompute_layers=layers))


def recomputed_flops(config: Config, channels: int, work: Work[float]) -> dict[str, float]:
    """FLOPs, on all ranks together, that one more layer costs under each policy for a row of this work."""
    model = config.model
    whole = 2 * layer_parameters(model) * work.tokens + attention_flops(model, work.pairs) / model.num_layers / 3
    return {
        "none": 0.0,
        "selective": 0.0,
        "mlp": 2 * feed_forward_weights(model) * work.tokens,
        "full": whole,
    }


def recompute_choices(config: Config, channels: int, work: Work[float]) -> list[Config]:
    """Every recompute policy with every number of layers, least FLOPs first."""
    per_rank = max(
        sum(stage_layers(config)[rank :: config.parallel.pipeline]) for rank in range(config.parallel.pipeline)
    )
    cost = recomputed_flops(config, channels, work)
    counted = [(policy, count) for policy in ("mlp", "full") for count in range(1, per_rank + 1)]
    names = [("none", 0), ("selective", 0), *sorted(counted, key=lambda name: name[1] * cost[name[0]])]
    return [with_policy(config, *name) for name in names]


def least_recompute(
    config: Config, world_size: int, channels: int, work: Work[float], memory_bytes: float
) -> Config | None:
    """The configuration with the least recomputation (in FLOPs) whose fullest rank fits `memory_bytes` less `RESERVE`;
    None if none does.
    """
    limit = memory_bytes * (1 - RESERVE)
    choices = recompute_choices(config, channels, work)
    return next((choice for choice in choices if rank_memory(choice, channels, world_size, work).total <= limit), None)


def resolve_recompute(
    config: Config, world_size: int, channels: int, memory_bytes: float, frame: tuple[int, int] | None = None
) -> Config:
    """`parallel.recompute = auto` replaced by the least recomputation that fits `memory_bytes`, for the longest row
    that the data can give.

    frame: (height, width) in pixels, None for the largest that the data options allow.  Other policies pass through.
    Raises ValueError, one line, if even `full` does not fit.
    """
    if config.parallel.recompute != "auto":
        return config
    work = longest_row(config, frame)
    chosen = least_recompute(config, world_size, channels, work, memory_bytes)
    if chosen is None:
        need = rank_memory(with_policy(config, "full"), channels, world_size, work).total / (1 - RESERVE)
        raise UserError(
            f"parallel.recompute = auto: rows of {work.tokens:,.0f} tokens need {need / 1e9:.1f} GB even with "
            "full recomputation, and a device has "
            f"{memory_bytes / 1e9:.1f} GB; use more parallel.tensor, parallel.context or parallel.pipeline "
            "(`python -m megatron_videogpt check` proposes layouts)"
        )
    return chosen
