"""Options of a toy tokenizer with an adversary: two networks that train each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_videogpt.config.sections import enter, option


@dataclass(frozen=True)
class GanOptions:
    """What is learned."""

    name: str = option("outside_gan", "objective")
    adversarial: float = option(0.5, "share of the adversarial loss, as a ratio of gradients")
    discriminator_lr: float = option(2e-3, "learning rate of the discriminator")


def rules(report: Any) -> None:
    """See `config.sections.Section`."""
    report.check_range("at least 0", lambda v: v >= 0, "objective.adversarial objective.discriminator_lr")


enter("objective", "outside_gan", GanOptions, rules, __package__, axes=frozenset({"context"}))
