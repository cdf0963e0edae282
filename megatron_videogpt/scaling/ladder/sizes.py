"""The model of a size: whole heads of one width, a depth in proportion, as near to N parameters as that allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...codec.geometry import expected_geometry
from ...config.schema import Config
from ...errors import UserError
from ...model.flops import component_parameters
from ...objective.build import parameter_table
from ..runs import ALL
from .options import Ladder

ROUNDED = 8
"""The feed-forward's inner width is a multiple of this, and of what the heads are a multiple of."""
LEAST = 0.5
"""Share of the smallest model's parameters below which a size has no model: the nearest width is 0."""


@dataclass(frozen=True)
class Counts:
    """Parameters that are trained: all of them, and the decoder's layers with its last norm."""

    all: int
    decoder: int

    def of(self, counted: str) -> int:
        """N, as `ladder.parameters` counts."""
        return self.all if counted == ALL else self.decoder


def counts_of(config: Config) -> Counts:
    """Parameters of a run's network."""
    table, channels = parameter_table(config), expected_geometry(config.codec).channels
    parts = component_parameters(table, config.model, channels)
    return Counts(sum(parts.values()), sum(count for name, count in parts.items() if name.startswith("decoder.")))


def sized(base: Config, ladder: Ladder, target: float, told: str) -> Config:
    """The recipe with the model whose parameters are nearest to `target`, by their ratio.

    told: the option that asks for it, for messages.

    Raises:
        UserError: the nearest width is 0, or the recipe's network does not grow with it.
    """
    smaller, number = None, 1
    while True:
        config = _of_heads(base, ladder, number)
        count = counts_of(config).of(ladder.parameters)
        if count >= target:
            break
        if smaller is not None and count <= smaller[1]:
            raise UserError(
                f"{told}: the {ladder.parameters} parameters of this recipe, {count:,}, do not grow with the width; a "
                "ladder's recipe has a network that [model] describes"
            )
        smaller, number = (config, count), number + 1
    if smaller is None and target < LEAST * count:
        model = config.model
        raise UserError(
            f"{told}: is {target:,.0f} parameters, but the smallest model of this recipe has {count:,} (width "
            f"{model.hidden_size}, heads of {model.head_dim}, layers {model.num_layers}), so that the width would be "
            f"0; use at least {math.ceil(LEAST * count):,} parameters, or a smaller ladder.head_dim or "
            "ladder.heads_multiple"
        )
    return smaller[0] if smaller is not None and target * target < smaller[1] * count else config


def _of_heads(base: Config, ladder: Ladder, number: int) -> Config:
    """The model of the `number`-th width."""
    model = base.model
    head_dim, shared = ladder.head_dim or model.head_dim, model.num_attention_heads // model.kv_heads
    heads = number * math.lcm(ladder.heads_multiple, shared)
    width = heads * head_dim
    layers = max(1, base.parallel.stages, round(width / aspect_of(base, ladder)))
    inner, step = width * feed_forward_of(base, ladder), math.lcm(ROUNDED, ladder.heads_multiple)
    return replace(
        base,
        model=replace(
            model,
            hidden_size=width,
            num_layers=layers,
            num_attention_heads=heads,
            num_query_groups=heads // shared if model.num_query_groups else 0,
            ffn_hidden_size=max(1, round(inner / step)) * step,
        ),
    )


def aspect_of(base: Config, ladder: Ladder) -> float:
    """Width over layers."""
    return ladder.aspect or base.model.hidden_size / base.model.num_layers


def feed_forward_of(base: Config, ladder: Ladder) -> float:
    """Inner width of the feed-forward over width."""
    return ladder.feed_forward or base.model.ffn_hidden_size / base.model.hidden_size
