"""What a ladder's plan knows of the runs in its folder, and their own files do not say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .ladder.folder import PLAN, Listed, read_plan
from .ladder.state import DIVERGED, state_of
from .points import Point, Selection


def planned_in(folder: Path) -> list[Listed]:
    """The runs of the ladder whose folder this is; none where it is no ladder's."""
    return read_plan(folder)[1] if (folder / PLAN).is_file() else []


def completed(points: Sequence[Point], planned: Sequence[Listed]) -> list[Point]:
    """The points with those of planned runs that have none yet, dropped, and with the reason why a run was given up
    where its own files only show that it is not finished.
    """
    begun = {point.name.partition("@")[0] for point in points}
    absent = [
        Point(run.name, math.nan, math.nan, math.nan, dropped="planned, and has not begun")
        for run in planned
        if run.name not in begun
    ]
    states = {run.name: state_of(run) for run in planned if run.name in begun}
    why = {name: state.why for name, state in states.items() if state.kind == DIVERGED}
    return [
        replace(point, dropped=why.get(point.name.partition("@")[0], point.dropped)) if point.dropped else point
        for point in points
    ] + absent


def held_otherwise(selection: Selection, planned: Sequence[Listed], hold_out: int) -> Iterator[str]:
    """A line for each run that the ladder holds out and `--hold-out` does not."""
    held, dropped = {point.name for point in selection.held_out}, {point.name: point for point in selection.dropped}
    count = sum(run.held_out for run in planned)
    for run in planned:
        if not run.held_out or run.name in held:
            continue
        if run.name in dropped:
            others = f"; predicted instead: {', '.join(sorted(held))}" if held else ""
            yield f"{run.name}, which the ladder holds out, is left out ({dropped[run.name].dropped}){others}"
        else:
            yield f"{run.name}, which the ladder holds out, is fitted; use --hold-out {count}, not {hold_out}"
