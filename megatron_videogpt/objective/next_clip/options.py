"""Options of next clip diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.problems import Report
from ...config.sections import enter, option


@dataclass(frozen=True)
class NextClipOptions:
    """What is learned."""

    name: str = option(
        "next_clip_diffusion", "objective; this release has next_clip_diffusion and next_block_prediction"
    )
    clean_retention: float = option(
        0.9, "beta: clean inputs keep a share drawn from [beta, 1] and get noise for the rest (1 = no noise)"
    )


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    report.check_range("from 0 to 1", lambda v: 0 <= v <= 1, "objective.clean_retention")


CONDITIONS = frozenset({"class", "text", "frames"})

enter(
    "objective",
    "next_clip_diffusion",
    NextClipOptions,
    check_options,
    __package__,
    default=True,
    conditions=CONDITIONS,
)
