"""Options of next clip diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.problems import Report
from ...config.sections import enter, option


@dataclass(frozen=True)
class NextClipOptions:
    """What is learned."""

    name: str = option(
        "next_clip_diffusion",
        "objective; this release has next_clip_diffusion, frame_prompt_diffusion, next_block_prediction and tokenizer",
    )
    clean_retention: float = option(
        0.9, "beta: clean inputs keep a share drawn from [beta, 1] and get noise for the rest (1 = no noise)"
    )


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    report.check_range("from 0 to 1", lambda v: 0 <= v <= 1, "objective.clean_retention")
    sample = report.config.sample
    if report.sound("sample.window", "sample.clips") and sample.window <= max(sample.clips):
        longest = max(sample.clips)
        must = f"hold a frame of history beside the longest clip of sample.clips, {longest} frames"
        report.add("sample.window", must, f"use {longest + 1} or more, or shorter clips")


CONDITIONS = frozenset({"class", "text", "frames"})

SAMPLING = frozenset({"steps", "guidance", "guidance_schedule", "history_noise", "time_shift"})

enter(
    "objective",
    "next_clip_diffusion",
    NextClipOptions,
    check_options,
    __package__,
    default=True,
    conditions=CONDITIONS,
    sampling=SAMPLING,
)
