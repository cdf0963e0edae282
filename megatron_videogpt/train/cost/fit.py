"""Rows whose times tell what a token costs from what an attended pair costs, and the fit to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from ...config.schema import Config
from ...data.plans import Plans
from ...errors import UserError
from ...plan.estimate import objective_work

Row = tuple[tuple[int, ...], ...]
"""Clip lengths of every sample of a row."""


@dataclass(frozen=True)
class Fit:
    """seconds = a * tokens + b * pairs + c; errors: of each row, relative to what was measured."""

    a: float
    b: float
    c: float
    errors: np.ndarray


def rows_to_time(frames: int) -> list[Row]:
    """Rows of a quarter, half and all of `frames`, as one, two or four samples, each of two clips or of single frames;
    none is longer than one sample can be.
    """
    rows: list[Row] = []
    for share in (4, 2, 1):
        for samples in (1, 2, 4):
            each = frames // share // samples
            if each >= 2:
                rows += [
                    ((each - 1, 1),) * samples,
                    ((each // 2, each - each // 2),) * samples,
                    ((1,) * each,) * samples,
                ]
    return list(dict.fromkeys(rows))


def work_of_rows(config: Config, rows: Sequence[Row], frame: tuple[int, int]) -> list[tuple[float, float]]:
    """(tokens, attended pairs) of each row, frames of ``frame`` = (height, width) pixels."""
    work = objective_work(config)
    found = [work.of(plans_of(row, frame)) for row in rows]
    return [(int(one.tokens.sum()), int(one.pairs.sum())) for one in found]


def plans_of(row: Row, frame: tuple[int, int]) -> Plans:
    """Plans of a row's samples: unconditioned, none of their frames given."""
    counts = np.array([sum(clips) for clips in row])
    cuts = np.zeros((len(row), counts.max()), dtype=bool)
    for number, clips in enumerate(row):
        cuts[number, np.cumsum(clips)[:-1] - 1] = True
    ones, zeros = np.ones_like(counts), np.zeros_like(counts)
    return Plans(
        number=np.arange(len(row)),
        key=np.arange(len(row)),
        dataset=zeros,
        item=-ones,
        start=zeros,
        interval=ones,
        count=counts,
        cuts=cuts,
        height=frame[0] * ones,
        width=frame[1] * ones,
        stride=ones,
        given=zeros,
        dropped=zeros.astype(bool),
        prefix=zeros,
    )


def fit_cost(tokens: Sequence[float], pairs: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Non-negative least squares of relative errors.

    Raises:
        ValueError: fewer than three rows, or seconds that are not above 0.
    """
    measured = np.asarray(seconds, dtype=np.float64)
    columns = np.stack([np.asarray(tokens, np.float64), np.asarray(pairs, np.float64), np.ones(len(measured))], axis=1)
    if len(measured) < 3 or not np.all(measured > 0):
        raise UserError(
            f"{len(measured)} rows with times from {min(seconds, default=0)} s: a fit needs at least 3, all "
            "above 0; use more data.frames"
        )
    relative = columns / measured[:, None]
    scale = relative.max(axis=0)
    solution = nnls(relative / scale, np.ones(len(measured)))[0] / scale
    a, b, c = map(float, solution)
    return Fit(a, b, c, errors=columns @ solution / measured - 1)


def describe(
    config: Config,
    measured: Config,
    rows: list[Row],
    works: list[tuple[float, float]],
    seconds: list[float],
    fit: Fit,
    device: str,
) -> str:
    """What was found, and the line to paste."""
    scale = config.model.num_layers / measured.model.num_layers
    linear, attended = objective_work(config).weights
    ratio = f"{fit.a / fit.b:,.0f}" if fit.b else "infinitely many"
    errors = np.abs(fit.errors)
    lines = [
        f"{device}: {measured.model.num_layers} of {config.model.num_layers} layers, recompute "
        f"{measured.parallel.recompute}, {len(rows)} rows of "
        f"{min(work[0] for work in works):,.0f} to {max(work[0] for work in works):,.0f} tokens, "
        f"{min(seconds):.3g} to {max(seconds):.3g} s",
        f"fit: {fit.a:.3g} s a token, {fit.b:.3g} s a pair, {fit.c:.3g} s a row; error "
        f"{np.median(errors):.1%} (median), {errors.max():.1%} (worst row)",
        f"a token costs as much as {ratio} pairs; by FLOPs, as {linear / attended:,.0f}",
        f"data.cost=[{fit.a * scale:.4g}, {fit.b * scale:.4g}]",
    ]
    return "\n".join(lines)


def plot(path: Path, works: list[tuple[float, float]], seconds: list[float], fit: Fit) -> None:
    """Measured against fitted seconds, coloured by pairs per token."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fitted = np.asarray(seconds) * (1 + fit.errors)
    figure, panel = plt.subplots(figsize=(6, 5))
    panel.plot([0, max(seconds)], [0, max(seconds)], color="grey", linewidth=1)
    points = panel.scatter(seconds, fitted, c=[pairs / tokens for tokens, pairs in works])
    figure.colorbar(points, label="attended pairs a token")
    panel.set(
        xlabel="measured, s", ylabel="fitted, s", title=f"{fit.a:.3g} * tokens + {fit.b:.3g} * pairs + {fit.c:.3g}"
    )
    panel.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
