"""metrics.jsonl read and tidied up, and the loss curve as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.locks import write_whole
from ..errors import UserError
from ..objective.base import Metric
from .standard_errors import PREFIX


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one cut short by a crash is left out."""
    with open(path, "rb") as file:
        return [line for line in map(_parsed, file) if line is not None]


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Leave only the wanted lines in a metrics.jsonl, in one move; where they are its beginning, a full disk allows it
    as well.
    """
    if not path.is_file():
        return
    text = path.read_bytes()
    parsed = ((raw, _parsed(raw)) for raw in text.splitlines(keepends=True))
    kept = b"".join(raw.rstrip() + b"\n" for raw, line in parsed if line is not None and wanted(line))
    if text.startswith(kept):
        os.truncate(path, len(kept))
    else:
        write_whole(path, lambda partial: partial.write_bytes(kept))


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None where that is none."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric, in step order."""
    pairs = sorted((line["step"], line[name]) for line in lines if line.get(name) is not None)
    return np.array([step for step, _ in pairs], float), np.array([value for _, value in pairs], float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving mean over about a twentieth of the curve: centred and shrinking at the steep start, only cut off at the
    flat end.
    """
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    before = np.minimum(half, place)
    after = np.minimum(before, len(values) - 1 - place)
    return (total[place + after + 1] - total[place - before]) / (before + after + 1)


def plot_loss(
    metrics: str | os.PathLike[str], png: str | os.PathLike[str], beside: Sequence[Metric] = (), label: str = "loss"
) -> None:
    """Draw `metrics.jsonl` as a PNG: training loss (raw and smoothed) and validation loss, with one more picture for
    each family of the metrics `beside` them: curves over steps, or, of what is counted in validation alone, where it
    was, the last values beside each other with their standard errors.  label: what the loss is.

    Raises:
        ValueError: the file has no loss.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    steps, losses = series(lines, "loss")
    if not len(steps):
        raise UserError(
            f"{os.fspath(metrics)}: no line with a loss, nothing to draw; expected lines that `train` wrote"
        )
    recorded = {name for line in lines for name in line}
    drawn = [metric for metric in beside if not metric.held_out or f"validation_{metric.name}" in recorded]
    families = list(dict.fromkeys(metric.family for metric in drawn))
    figure = Figure(figsize=(5.5 * (1 + len(families)), 4.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(families), squeeze=False)[0]
    first.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
    first.plot(steps, smooth(losses), color="tab:blue", label="training, smoothed")
    held_out = series(lines, "validation_loss")
    if len(held_out[0]):
        first.plot(*held_out, color="tab:orange", marker="o", markersize=3, label="validation")
    first.set_title("loss")
    for axes in (first, *others):
        axes.set(xlabel="step", ylabel=label)
    for axes, family in zip(others, families):
        members = [metric for metric in drawn if metric.family == family]
        (_profile if members[0].held_out else _family)(axes, lines, members)
    for axes in (first, *others):
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(png, dpi=120, format="png")


def _family(axes: Any, lines: list[dict[str, Any]], metrics: Sequence[Metric]) -> None:
    """One smoothed curve for each metric of a family: of training where it has them, else of validation."""
    from matplotlib import colormaps

    recorded = {name for line in lines for name in line}
    prefix = "" if any(metric.name in recorded for metric in metrics) else "validation_"
    shown = [metric for metric in metrics if prefix + metric.name in recorded]
    for place, metric in enumerate(shown):
        steps, values = series(lines, prefix + metric.name)
        color = colormaps["viridis"](0.9 * place / max(1, len(shown) - 1))
        axes.plot(steps, smooth(values), color=color, label=metric.label)
    axes.set_title(f"{'validation' if prefix else 'training'}: {metrics[0].family.replace('_', ' ')}")


def _profile(axes: Any, lines: list[dict[str, Any]], metrics: Sequence[Metric]) -> None:
    """The metrics of a family beside each other, from the last validation that has one of them."""
    axes.set_title(f"validation: {metrics[0].family.replace('_', ' ')}")
    found = [line for line in lines if any(line.get(f"validation_{metric.name}") is not None for metric in metrics)]
    if not found:
        return
    last = max(found, key=lambda line: line["step"])
    shown = [metric for metric in metrics if last.get(f"validation_{metric.name}") is not None]
    values = [last[f"validation_{metric.name}"] for metric in shown]
    errors = [last.get(f"validation_{PREFIX}{metric.name}") or 0.0 for metric in shown]
    label = f"after step {last['step']}"
    axes.errorbar(range(len(shown)), values, errors, color="tab:orange", marker="o", capsize=2, label=label)
    axes.set_xticks(range(len(shown)), [metric.label for metric in shown], rotation=45, ha="right", fontsize=8)
    axes.set(xlabel="")
