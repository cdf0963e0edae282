"""The table of a ladder's runs as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ...plan.report import table_of
from ..runs import DIVERGED as FACTOR
from ..runs import LOSS
from .folder import Listed
from .grid import label
from .plan_report import time
from .state import DIVERGED, FINISHED, RUNNING, STOPPED, State

STYLES = {FINISHED: "green", RUNNING: "cyan", DIVERGED: "red", STOPPED: "yellow"}
RULE = (
    f"diverged, and left out by `scaling fit`: a {LOSS} that is no finite number or above {FACTOR:g} times the lowest "
    "before it, or optimizer.max_skipped skipped steps in a row"
)


def status_table(pairs: Sequence[tuple[Listed, State]], notes: dict[str, str] | None = None) -> Table:
    """notes: what else is to be said of a run, by its name."""
    columns = ("state", "step", "of", "done", "loss", "validation", "tokens/s", "left")
    table = table_of(summary([state for _, state in pairs]), "run", *columns, "", caption=RULE)
    table.columns[1].justify = table.columns[-1].justify = "left"
    for run, state in pairs:
        steps = run.config.train.steps
        left = seconds_left(run, state)
        table.add_row(
            f"{run.name}{' (held out)' * run.held_out}",
            state.kind,
            f"{state.step:,}",
            f"{steps:,}",
            f"{min(1.0, state.step / steps):.0%}",
            _number(state.loss),
            _number(state.validation),
            label(state.rate) if math.isfinite(state.rate) else "",
            time(left) if left else "",
            (notes or {}).get(run.name) or state.why or state.holder,
            style=STYLES.get(state.kind),
        )
    return table


def summary(states: Sequence[State]) -> str:
    """How many are where."""
    kinds = [state.kind for state in states]
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return f"{len(states)} runs: {', '.join(counts)}"


def seconds_left(run: Listed, state: State) -> float:
    """Of a run, by its own speed, else by the plan's."""
    steps = run.config.train.steps
    if state.kind in (FINISHED, DIVERGED):
        return 0.0
    each = state.step_time if math.isfinite(state.step_time) else run.seconds / steps
    return each * max(0, steps - state.step)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def as_json(pairs: Sequence[tuple[Listed, State]]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": run.name,
            "held_out": run.held_out,
            "state": state.kind,
            "step": state.step,
            "steps": run.config.train.steps,
            "saved": state.saved,
            "loss": state.loss,
            "validation_loss": state.validation,
            "tokens_per_second": state.rate,
            "seconds_left": seconds_left(run, state),
            "process": state.holder,
            "why": state.why,
        }
        for run, state in pairs
    ]
