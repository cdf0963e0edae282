"""Pictures of a fit, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.locks import write_whole
from .analysis import Result
from .isoflop import groups
from .law import FLOPS
from .points import SIZES, Point, inputs_of, losses_of
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"huber": "tab:blue", "projection": "tab:orange"}
LABELS = {"huber": "Huber", "projection": "variable projection"}
BEYOND = 30.0
"""How many times the largest compute the frontier is drawn."""


def draw(result: Result, runs: Sequence[Run], folder: Path) -> list[str]:
    """Write what there is to draw; names of the pictures, without their endings."""
    figures = {
        "frontier": _frontier(result),
        "residuals": _residuals(result),
        "isoflop": _isoflop(result),
        "loss_curves": _curves(runs),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        for kind in ("png", "svg"):
            _save(figure, folder / f"{name}.{kind}", kind)
    return list(drawn)


def _save(figure: Figure, path: Path, kind: str) -> None:
    from matplotlib import rc_context

    # The same points give the same bytes.
    dated: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    with rc_context({"svg.hashsalt": path.name}):
        write_whole(path, lambda partial: figure.savefig(partial, dpi=120, format=kind, **dated))


def _figure(width: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.grid(alpha=0.3, which="both")
    return figure, axes


def _scatter(axes: Any, points: Sequence[Point], x: Sequence[float], y: Sequence[float], held: bool = False) -> None:
    if points:
        style = {"marker": "*", "s": 70, "color": "tab:red", "label": "held out"}
        plain = {"marker": "o", "s": 12, "color": "0.45", "label": "fitted"}
        axes.scatter(x, y, zorder=3, **(style if held else plain))


def _frontier(result: Result) -> Figure:
    figure, (left, middle, right) = _figure(15, 3)
    selection = result.selection
    everything = [point.compute for point in (*selection.fitted, *selection.held_out)]
    compute = np.geomspace(min(everything), BEYOND * max(everything), 60)
    for points, held in ((selection.fitted, False), (selection.held_out, True)):
        _scatter(left, points, [point.compute for point in points], [point.loss for point in points], held)
    for method in result.estimates:
        best, style = result.frontier(method, compute), {"color": COLOURS[method], "label": LABELS[method]}
        for axes, name in ((left, "loss"), (middle, "parameters"), (right, "tokens")):
            axes.plot(compute, getattr(best.line, name), **style)
            band = getattr(best.low, name), getattr(best.high, name)
            axes.fill_between(compute, *band, color=COLOURS[method], alpha=0.2, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="compute C = 6 N D, FLOPs", ylabel="loss")
    left.set_title("compute-optimal frontier")
    for axes, name, what in ((middle, "parameters N", "size"), (right, "tokens D", "number of tokens")):
        axes.set(xscale="log", yscale="log", xlabel="compute C = 6 N D, FLOPs", ylabel=name)
        axes.set_title(f"best {what}, with {result.settings.level:.0%} bands")
    for axes in (left, middle, right):
        axes.axvline(max(everything), color="0.6", linestyle=":", linewidth=1)
        axes.legend(fontsize=8)
    return figure


def _residuals(result: Result) -> Figure:
    figure, axes = _figure(11, 2)
    points, held = result.selection.fitted, result.selection.held_out
    for method, estimate in result.estimates.items():
        law = estimate.fit.law
        for some, marker in ((points, "."), (held, "*")):
            if not some:
                continue
            inputs = inputs_of(some, SIZES)
            percent = 100 * (losses_of(some) / law.loss(inputs) - 1)
            label = LABELS[method] + (", held out" if some is held else "")
            for place, one in enumerate(axes):
                one.scatter(inputs[:, place], percent, marker=marker, color=COLOURS[method], label=label, alpha=0.7)
    for one, name in zip(axes, ("parameters N", "tokens D")):
        one.axhline(0, color="0.3", linewidth=0.8)
        one.set(xscale="log", xlabel=name, ylabel="measured over predicted, %")
        one.legend(fontsize=8)
    axes[0].set_title("what the law does not explain")
    return figure


def _isoflop(result: Result) -> Figure | None:
    found = groups([*result.selection.fitted, *result.selection.held_out])
    if not found:
        return None
    from matplotlib import colormaps

    figure, (axes,) = _figure(8)
    law = result.estimates["projection"].fit.law
    for place, group in enumerate(found):
        colour = colormaps["viridis"](0.9 * place / max(1, len(found) - 1))
        sizes = np.array([point.parameters for point in group.points])
        axes.scatter(sizes, [point.loss for point in group.points], color=colour, s=14)
        line = np.geomspace(sizes.min(), sizes.max(), 60)
        axes.plot(line, np.polyval(group.parabola, np.log10(line)), color=colour, linestyle=":", linewidth=1)
        tokens = group.compute / FLOPS / line
        axes.plot(line, law.loss(np.stack([line, tokens], 1)), color=colour, label=f"{group.compute:.1e} FLOPs")
        if group.opens and sizes.min() <= group.vertex <= sizes.max():
            axes.plot(group.vertex, np.polyval(group.parabola, np.log10(group.vertex)), "x", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="parameters N", ylabel="loss")
    axes.set_title("equal compute: law (solid), parabola (dotted; its minimum is biased)", fontsize=10)
    axes.legend(fontsize=7)
    return figure


def _curves(runs: Sequence[Run]) -> Figure | None:
    if not runs:
        return None
    from matplotlib import colormaps

    figure, (axes,) = _figure(8)
    runs = sorted(runs, key=lambda run: (run.parameters, run.points[-1].tokens))
    sizes = np.log([run.parameters for run in runs])
    span = max(float(np.ptp(sizes)), 1e-9)
    for run, size in zip(runs, sizes):
        colour = colormaps["viridis"](0.9 * (size - sizes.min()) / span)
        axes.plot(
            run.tokens, run.losses, color=colour, label=f"{run.folder.name}, N = {run.parameters:.3g}", marker="."
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="validation loss", title="loss of each run")
    axes.legend(fontsize=7)
    return figure
