"""Scores for readers: a table, curves over the predicted frames, an animated picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from ..sample.render import GAP, GENERATED, GIVEN, INK, PAPER, TRUTH, font, outline, scaled
from .measure import ROWS, Score
from .scenes import Scene

TILE = 96  # pixels of a frame's side in the animated picture, about
LEFT, TOP, BORDER = 50, 20, 3
QUALITIES = (80, 65, 50, 35, 20, 10)  # of WebP, the first that is small enough
LARGEST = 1_000_000  # bytes


def score_table(scores: Mapping[str, Score]) -> Table:
    """A row for each guess: its error against repeating the last frame, the share of bodies found by kind, mean and
    worst.
    """
    table = Table(title="share of bodies found, by kind", title_justify="right")
    table.add_column("", no_wrap=True)
    first = next(iter(scores.values()))
    for name in ("error ratio", *first.found, "mean", "worst"):
        table.add_column(name, justify="right")
    for name, score in scores.items():
        values = score.ratio, *score.found.values(), score.mean, score.worst
        table.add_row(ROWS[name], *(f"{value:.3f}" for value in values))
    return table


def plot(scores: Mapping[str, Score], path: Path) -> None:
    """Write a PNG: pixel error and share found over the number of the predicted frame.

    Linear extrapolation is left out: its error soon leaves the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, score in scores.items():
        if name == "linear":
            continue
        frames = range(1, len(score.mse_by_frame) + 1)
        left.plot(frames, score.mse_by_frame, label=ROWS[name], linewidth=1.6)
        right.plot(frames, score.found_by_frame, label=ROWS[name], linewidth=1.6)
    left.set(title="pixel error (MSE, pixels in [0, 1]), lower is nearer", xlabel="predicted frame", ylim=(0, None))
    right.set(title="share of bodies found, higher is better", xlabel="predicted frame", ylim=(-0.02, 1.03))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def animate(scenes: Sequence[Scene], predicted: Sequence[np.ndarray], path: Path) -> None:
    """Write an animated WebP of at most 1 MB: scenes side by side, the truth above, the model below.

    Given frames are outlined in blue, predicted ones in orange, true ones in grey, as in the sample command's videos.

    Args:
        scenes: of one size and length.
        predicted: of each scene what the model shows after the given frames, uint8 ``[F, H, W, 3]``.
        path: the WebP; parent folder exists.
    """
    columns = [_column(scene, frames) for scene, frames in zip(scenes, predicted)]
    _, height, width, _ = columns[0].shape
    paper = Image.new("RGB", (LEFT + len(columns) * (width + GAP), TOP + height + GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    for number, scene in enumerate(scenes):
        place = (LEFT + number * (width + GAP) + width // 2, TOP // 2)
        draw.text(place, scene.kind, fill=INK, font=font(13), anchor="mm")
    for number, (text, colour) in enumerate((("truth", TRUTH), ("model", GENERATED))):
        draw.text((LEFT - 6, TOP + (2 * number + 1) * height // 4), text, fill=colour, font=font(13), anchor="rm")
    pictures = []
    for moment in range(len(columns[0])):
        picture = paper.copy()
        for number, column in enumerate(columns):
            picture.paste(Image.fromarray(column[moment]), (LEFT + number * (width + GAP), TOP))
        pictures.append(picture)
    path.write_bytes(_webp(pictures, round(1000 / scenes[0].prompt.fps)))


def _column(scene: Scene, predicted: np.ndarray) -> np.ndarray:
    """Truth above prediction, enlarged and outlined: uint8 ``[F, H', W', 3]``."""
    height, width = predicted.shape[1:3]
    factor = TILE / max(height, width)
    size = round(factor * width), round(factor * height)
    given = outline(scaled(scene.prompt.condition, *size), GIVEN, BORDER)
    truth = np.concatenate([given, outline(scaled(scene.truth, *size), TRUTH, BORDER)])
    model = np.concatenate([given, outline(scaled(predicted, *size), GENERATED, BORDER)])
    gap = np.full((len(truth), GAP, *truth.shape[2:]), PAPER, np.uint8)
    return np.concatenate([truth, gap, model], axis=1)


def _webp(pictures: list[Image.Image], milliseconds: int) -> bytes:
    """In the best quality that is small enough, else in the worst."""
    for quality in QUALITIES:
        target = io.BytesIO()
        pictures[0].save(
            target,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
            quality=quality,
            method=4,
        )
        if target.tell() <= LARGEST:
            break
    return target.getvalue()
