"""Where a run of a ladder is, from what lies in its folder alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.folders import newest_folder, step_of
from ...checkpoint.in_use import LOCK
from ...data.locks import holder
from ..runs import LOSS, METRICS, why_diverged
from .folder import Listed

NEW, RUNNING, STOPPED, FINISHED, DIVERGED = "new", "running", "stopped", "finished", "diverged"
OVER = (FINISHED, DIVERGED)
"""Nothing is left to do."""

SKIPPED = "skipped.jsonl"
"""Steps that were not taken, in the run's folder."""
TAIL = 1 << 16
"""Bytes at the end of a file that are looked at while a run goes on."""


@dataclass(frozen=True)
class State:
    """kind: one of those above; step: the last that is recorded; saved: that of the newest checkpoint; loss and
    validation: the last ones, NaN without; rate: tokens a second; step_time: in seconds; holder: which process trains
    there, "" for none; why: what is wrong.
    """

    kind: str
    step: int = 0
    saved: int = 0
    loss: float = math.nan
    validation: float = math.nan
    rate: float = math.nan
    step_time: float = math.nan
    holder: str = ""
    why: str = ""


def state_of(run: Listed) -> State:
    """Of a run, now."""
    folder, steps = run.folder, run.config.train.steps
    newest, who = newest_folder(folder), holder(folder / LOCK)
    saved = 0 if newest is None else step_of(newest)
    lines = _lines(folder / METRICS, 0 if saved >= steps else TAIL)
    kind, why = _kind(run, saved, who, lines)
    return State(
        kind,
        max((line["step"] for line in lines), default=saved),
        saved,
        _last(lines, "loss"),
        _last(lines, LOSS),
        _last(lines, "tokens_per_second"),
        _last(lines, "step_time"),
        who,
        why,
    )


def _kind(run: Listed, saved: int, who: str, lines: list[dict[str, Any]]) -> tuple[str, str]:
    """What a run is, and what is wrong with it."""
    steps = run.config.train.steps
    if who:
        return RUNNING, ""
    measured = {line["step"]: line[LOSS] for line in lines if LOSS in line}
    if saved >= steps and steps in measured:
        whys = [_why(step, measured) for step in run.points]
        why = next((f"{text} (point at step {step})" for step, text in zip(run.points, whys) if text), "")
        return (DIVERGED, why) if why else (FINISHED, "")
    skipped = _skipped(run.folder / SKIPPED, run.config.optimizer.max_skipped, saved)
    if skipped:
        return DIVERGED, f"diverged: stopped after {skipped}"
    return (STOPPED, "") if saved else (NEW, "")


def _why(step: int, measured: dict[int, float | None]) -> str:
    before = {at: loss for at, loss in measured.items() if at < step and loss is not None}
    loss = measured.get(step, math.nan)
    return why_diverged(math.nan if loss is None else loss, before)


def _skipped(path: Path, most: int, saved: int) -> str:
    """In words the `most` skipped steps in a row at which a run stopped; "" where it did not."""
    found = [line["step"] for line in _lines(path, TAIL * 16) if "part" not in line][-most:]
    in_a_row = len(found) == most and found == list(range(found[-1] - most + 1, found[-1] + 1))
    if not in_a_row or found[-1] <= saved:
        return ""
    return f"{most} skipped steps in a row, the last one {found[-1]} (optimizer.max_skipped; {path})"


def _last(lines: list[dict[str, Any]], name: str) -> float:
    found = next((line[name] for line in reversed(lines) if line.get(name) is not None), math.nan)
    return float(found)


def _lines(path: Path, tail: int) -> list[dict[str, Any]]:
    """Of a file of JSON lines those at its end, of so many bytes; 0: all.  Pieces of lines are left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - tail) if tail else 0)
            text = file.read()
    except OSError:
        return []
    found = []
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found
