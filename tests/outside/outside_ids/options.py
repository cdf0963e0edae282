"""Options of a toy of next block prediction, and its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_videogpt.config.schedules import enter_schedule
from megatron_videogpt.config.sections import enter, option

from .schedule import nbp_cosine


@dataclass(frozen=True)
class IdsOptions:
    """What is learned."""

    name: str = option("outside_ids", "objective")
    block: int = option(4, "tokens of a block")


def rules(report: Any) -> None:
    """See `config.sections.Section`."""
    report.check_range("at least 1", lambda v: v >= 1, "objective.block")


enter_schedule("nbp_cosine", nbp_cosine)
enter("objective", "outside_ids", IdsOptions, rules, __package__)
