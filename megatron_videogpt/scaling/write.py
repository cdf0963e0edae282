"""Files of a fit beside its report: JSON, CSV, settings."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.locks import write_whole
from ..version import __version__
from .analysis import Best, Estimate, Prediction, Result
from .points import SIZES, Point, inputs_of
from .table import ERROR

FINE = 41
"""Computes of frontier.csv."""


def write_file(path: Path, text: str) -> None:
    """A text file that appears whole."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_numbers(result: Result, folder: Path) -> None:
    """`fit.json`: everything that was found; `points.csv`, which can be fitted again; `frontier.csv`."""
    write_json(folder / "fit.json", _described(result))
    _write_points(result, folder / "points.csv")
    _write_frontier(result, folder / "frontier.csv")


def write_settings(result: Result, options: dict[str, Any], folder: Path) -> None:
    """`settings.json`: what was asked for, and the versions that answered."""
    import scipy

    versions = {"megatron_videogpt": __version__, "numpy": np.__version__, "scipy": scipy.__version__}
    write_json(folder / "settings.json", {**options, **asdict(result.settings), "versions": versions})


def write_json(path: Path, value: Any) -> None:
    """Numbers that are not finite become null."""
    write_file(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become None, tuples lists."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _described(result: Result) -> dict[str, Any]:
    chosen = result.selection
    return {
        "law": "L = E + A / N^alpha + B / D^beta",
        "level": result.settings.level,
        "points": {"fitted": len(chosen.fitted), "held_out": len(chosen.held_out), "dropped": len(chosen.dropped)},
        "dropped": {point.name: point.dropped for point in chosen.dropped},
        "standard_errors": {
            point.name: point.errors["loss"] for point in (*chosen.fitted, *chosen.held_out) if "loss" in point.errors
        },
        "methods": {method: _estimate(one) for method, one in result.estimates.items()},
        "predictions": [_predicted(one) for one in result.predictions],
        "frontier": {method: _best(best) for method, best in result.best.items()},
        "steps_and_batch": {
            "law": "L = E + A / N^alpha + B / S^beta + C / b^gamma",
            "methods": {method: _estimate(one) for method, one in result.steps.items()},
        },
        "levels": {
            name: _estimate(one) | {"predictions": [_predicted(found) for found in result.level_predictions[name]]}
            for name, one in result.levels.items()
        },
        "left_out": result.left_out,
    }


def _predicted(one: Prediction) -> dict[str, Any]:
    return {
        "name": one.point.name,
        "method": one.method,
        "measured": one.point.loss,
        "predicted": one.loss,
        "interval": one.interval,
        "error": one.error,
        "half_width": one.half_width,
        "inside": one.inside,
    }


def _best(best: Best) -> list[dict[str, Any]]:
    """Of each compute."""
    numbers = {"N": "parameters", "D": "tokens", "loss": "loss"}
    found = []
    for place, compute in enumerate(best.line.compute):
        row: dict[str, Any] = {"C": float(compute)}
        for name, part in numbers.items():
            value, *interval = (float(getattr(one, part)[place]) for one in (best.line, best.low, best.high))
            row |= {name: value, f"{name}_interval": interval}
        found.append(row)
    return found


def _estimate(one: Estimate) -> dict[str, Any]:
    return {
        "numbers": one.numbers,
        "bootstrap": one.bootstrap,
        "profile": one.profile,
        "objective": one.fit.objective,
        "points": len(one.fit.measured),
        "remarks": one.fit.remarks,
    }


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])

    write_whole(path, write)


def _write_points(result: Result, path: Path) -> None:
    chosen = result.selection
    levels = sorted({level for point in chosen.fitted for level in point.levels})
    laws = [one.fit.law for one in result.estimates.values()]
    everything = (*chosen.fitted, *chosen.held_out, *chosen.dropped)
    sure = [name for name in ("loss", *levels) if any(name in point.errors for point in everything)]

    def row(point: Point, state: str) -> list[Any]:
        numbers = [point.parameters, point.tokens, point.compute, point.loss, point.steps, point.batch, point.flops]
        fits = [float(law.loss(inputs_of([point], SIZES))[0]) if state != "dropped" else math.nan for law in laws]
        cells = [*numbers, *fits, *(point.levels.get(level, math.nan) for level in levels)]
        cells += [point.errors.get(name, math.nan) for name in sure]
        shown = ["" if math.isnan(value) else repr(float(value)) for value in cells]
        return [point.name, *shown[:7], state, point.dropped, *shown[7:]]

    head = ["name", "N", "D", "C", "loss", "S", "b", "flops", "state", "dropped_because"]
    head += [f"predicted_{method}" for method in result.estimates] + levels + [f"{ERROR}{name}" for name in sure]
    states = ((chosen.fitted, "fitted"), (chosen.held_out, "held out"), (chosen.dropped, "dropped"))
    _write_csv(path, head, [row(point, state) for points, state in states for point in points])


def _write_frontier(result: Result, path: Path) -> None:
    chosen = [point.compute for point in (*result.selection.fitted, *result.selection.held_out)]
    compute = np.unique(np.concatenate([np.geomspace(min(chosen), 100 * max(chosen), FINE), *_asked(result)]))
    rows = []
    for method in result.estimates:
        best = result.frontier(method, compute)
        columns = [
            getattr(one, name) for name in ("parameters", "tokens", "loss") for one in (best.line, best.low, best.high)
        ]
        rows += [[method, *map(float, cells)] for cells in zip(compute, *columns)]
    names = [f"{name}{end}" for name in ("N", "D", "loss") for end in ("", "_low", "_high")]
    _write_csv(path, ["method", "C", *names], rows)


def _asked(result: Result) -> list[np.ndarray]:
    return [best.line.compute for best in list(result.best.values())[:1]]
