"""Options of next clip diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.problems import Report
from ...config.sections import enter, option


@dataclass(frozen=True)
class NextClipOptions:
    """What is learned."""

    name: str = option("next_clip_diffusion", "objective; this release has next_clip_diffusion")
    clean_retention: float = option(
        0.9, "beta: clean inputs keep a share drawn from [beta, 1] and get noise for the rest (1 = no noise)"
    )
    time_shift: float = option(
        1.0,
        "time shifting factor f of training: u/(u + f - f u) for a uniform draw u, as in sample.time_shift; above 1 "
        "trains more near pure noise, where the future has to be predicted; 1 (the paper's) leaves the draw uniform",
    )


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    report.check_range("from 0 to 1", lambda v: 0 <= v <= 1, "objective.clean_retention")
    report.check_range("above 0", lambda v: v > 0, "objective.time_shift")


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
