"""Options of a video denoiser whose layers attend in space or in time, and each to a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_videogpt.config.sections import AXES, enter, option


@dataclass(frozen=True)
class FactorisedOptions:
    """What is learned."""

    name: str = option("outside_factorised", "objective")
    words: int = option(4, "most words of a sample's text")
    parts: int = option(4, "of N frames the first N * k // parts are given, with k from 0 to parts - 1")


def rules(report: Any) -> None:
    """See `config.sections.Section`."""
    report.check_range("at least 1", lambda v: v >= 1, "objective.words objective.parts")


# Side inputs are trained, and stages of a pipeline do not pass those on.
enter(
    "objective",
    "outside_factorised",
    FactorisedOptions,
    rules,
    __package__,
    axes=AXES - {"pipeline", "virtual_pipeline"},
)
