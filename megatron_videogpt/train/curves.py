"""Reading metrics.jsonl, and the loss curve as a picture."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np

from ..errors import UserError

NOISE_LEVEL = re.compile(r"(validation_)?loss_t(\d\.\d-\d\.\d)$")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one cut short by a crash is left out."""
    lines = []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


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


def plot_loss(metrics: str | os.PathLike[str], png: str | os.PathLike[str]) -> None:
    """Draw `metrics.jsonl` as a PNG: training loss (raw and smoothed) and validation loss; beside it the loss by noise
    level.

    Metrics named ``loss``, ``validation_loss`` and ``loss_tA-B`` (timesteps from A to B, 0 noise, 1 data) are drawn,
    where present.

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
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
    left.plot(steps, smooth(losses), color="tab:blue", label="training, smoothed")
    held_out = series(lines, "validation_loss")
    if len(held_out[0]):
        left.plot(*held_out, color="tab:orange", marker="o", markersize=3, label="validation")
    left.set_title("loss")
    _noise_levels(right, lines)
    for axes in (left, right):
        axes.set(xlabel="step", ylabel="mean squared error")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(png, dpi=120, format="png")


def _noise_levels(axes: Any, lines: list[dict[str, Any]]) -> None:
    """One smoothed curve per noise level: training where it has them, else validation."""
    from matplotlib import colormaps

    names = sorted({name for line in lines for name in line if NOISE_LEVEL.match(name)})
    names = [name for name in names if not name.startswith("validation_")] or names
    for place, name in enumerate(names):
        steps, values = series(lines, name)
        axes.plot(
            steps,
            smooth(values),
            color=colormaps["viridis"](0.9 * place / max(1, len(names) - 1)),
            label="t " + name.rpartition("_t")[2],
        )
    axes.set_title(
        "training loss by timestep (t = 0 noise, 1 data)"
        if names and not names[0].startswith("validation_")
        else "loss by timestep"
    )
