"""Predictions as pictures: outlined and labelled frames as a video, and a contact sheet to see a whole continuation at
a glance.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Distinguishable for colour-blind readers (Okabe-Ito blue and orange).
GIVEN: Colour = (0, 114, 178)
GENERATED: Colour = (230, 126, 0)
TRUTH: Colour = (110, 110, 110)
PAPER: Colour = (250, 250, 250)
INK: Colour = (40, 40, 40)

VIDEO_SIDE = 256  # smaller frames are enlarged to at least this in videos
TILE_SIDES = (128, 192)  # longer side of a frame in a contact sheet, at least and at most
SHEET_WIDTH = 1800
LEGEND_WIDTH = 720
GAP = 6


def outline(frames: np.ndarray, colour: Colour, width: int) -> np.ndarray:
    """A copy of uint8 ``[F, H, W, 3]`` with a border of `width` pixels drawn around it: ``[F, H + 2*width, W + 2*width,
    3]``; no pixel is covered.
    """
    framed = np.empty((len(frames), frames.shape[1] + 2 * width, frames.shape[2] + 2 * width, 3), np.uint8)
    framed[:] = np.array(colour, np.uint8)
    framed[:, width : framed.shape[1] - width, width : framed.shape[2] - width] = frames
    return framed


def prediction_video(condition: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The given frames, then the prediction, with ground truth at its left where there is some.

    Given frames are outlined in blue, predicted ones in orange, true ones in grey; the caption says so too.  Frames
    below 256 pixels are enlarged by a whole factor.

    Args:
        condition, predicted: uint8 ``[., H, W, 3]``.
        truth: uint8 ``[T, H, W, 3]``, the frames that really followed; T may be shorter than the prediction (then its
            panel stays empty).

    Returns:
        uint8 ``[F, H', W', 3]``, F = len(condition) + len(predicted), both sides even.
    """
    parts = [_panel(condition, GIVEN, "given"), _panel(predicted, GENERATED, "prediction")]
    frames = np.concatenate([part for part in parts if len(part)])
    if truth is not None:
        true = _panel(truth[: len(predicted)], TRUTH, "ground truth")
        blank = np.full((len(predicted) - len(true), *frames.shape[1:]), PAPER, np.uint8)
        left = np.concatenate([part for part in (parts[0], true, blank) if len(part)])
        gap = np.full((*frames.shape[:2], GAP, 3), PAPER, np.uint8)
        frames = np.concatenate([left, gap, frames], axis=2)
    # Video codecs want even sides.
    spare = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, spare, constant_values=PAPER[0])


def _panel(frames: np.ndarray, colour: Colour, caption: str) -> np.ndarray:
    """Enlarged and outlined frames with a caption on top."""
    if not len(frames):
        return frames
    factor = max(1, -(-VIDEO_SIDE // max(frames.shape[1:3])))
    framed = outline(scaled(frames, factor * frames.shape[2], factor * frames.shape[1]), colour, 4)
    head = Image.new("RGB", (framed.shape[2], 24), PAPER)
    ImageDraw.Draw(head).text((4, 12), caption, fill=colour, font=font(16), anchor="lm")
    return np.concatenate([np.broadcast_to(np.asarray(head), (len(framed), 24, framed.shape[2], 3)), framed], axis=1)


def scaled(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames, uint8 ``[F, H, W, 3]``, at another size: enlarged bicubically, reduced by Lanczos's filter."""
    if (height, width) == frames.shape[1:3]:
        return frames
    how = Image.Resampling.BICUBIC if width >= frames.shape[2] else Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), how)) for frame in frames])


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own default cannot be scaled in older releases."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def contact_sheet(
    condition: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None, path: str | os.PathLike[str], every: int = 1
) -> None:
    """Write a PNG with time from left to right: a row of true frames (where known) above the row that the model was
    given and made.

    Rows wrap when there are many frames; every frame has its number; outlines as in `prediction_video`.

    Args:
        condition, predicted: uint8 ``[., H, W, 3]``.
        truth: uint8 ``[T, H, W, 3]``, what really followed the condition, or None; T may be shorter than the
            prediction.
        path: the PNG; parent folder exists.
        every: the frames given here are every so many-th of the video, which their numbers count.
    """
    rows = [_row("prediction", (condition, GIVEN), (predicted, GENERATED))]
    if truth is not None and len(truth):
        rows.insert(0, _row("ground truth", (condition, GIVEN), (truth[: len(predicted)], TRUTH)))
    width, height = rows[-1][1][0].size
    total = len(condition) + len(predicted)
    columns = _columns(total, width)
    bands = -(-total // columns)
    left, top, label = 96, 34, 16
    band = label + len(rows) * (height + GAP) + GAP
    sheet = Image.new("RGB", (max(LEGEND_WIDTH, left + columns * (width + GAP) + GAP), top + bands * band), PAPER)
    draw = ImageDraw.Draw(sheet)
    _legend(draw, left, top, truth is not None and len(truth) > 0)
    for number in range(total):
        x, y = left + number % columns * (width + GAP), top + number // columns * band
        draw.text((x + width // 2, y + label // 2), str(number * every), fill=INK, font=font(11), anchor="mm")
        for row, (name, tiles) in enumerate(rows):
            tile_top = y + label + row * (height + GAP)
            if number % columns == 0 and number < len(tiles):
                draw.text(
                    (left - 8, tile_top + height // 2),
                    name.replace(" ", "\n"),
                    fill=INK,
                    font=font(13),
                    anchor="rm",
                    align="right",
                )
            if number < len(tiles):
                sheet.paste(tiles[number], (x, tile_top))
    sheet.save(path, format="PNG")


def _row(name: str, *parts: tuple[np.ndarray, Colour]) -> tuple[str, list[Image.Image]]:
    """Outlined tiles of one row."""
    return name, [
        Image.fromarray(tile) for frames, colour in parts if len(frames) for tile in outline(_tiles(frames), colour, 3)
    ]


def _tiles(frames: np.ndarray) -> np.ndarray:
    """Frames whose longer side is brought within the tile sizes."""
    height, width = frames.shape[1:3]
    scale = min(max(height, width, TILE_SIDES[0]), TILE_SIDES[1]) / max(height, width)
    return scaled(frames, max(1, round(width * scale)), max(1, round(height * scale)))


def _columns(frames: int, width: int) -> int:
    """As many columns as fit, rows about equally long."""
    most = max(1, SHEET_WIDTH // (width + GAP))
    return -(-frames // -(-frames // most))


def _legend(draw: ImageDraw.ImageDraw, left: int, height: int, with_truth: bool) -> None:
    """What the outlines mean, and which way time goes."""
    x = left
    entries = [("given", GIVEN), ("prediction", GENERATED)] + ([("ground truth", TRUTH)] if with_truth else [])
    for text, colour in entries:
        draw.rectangle([x, height // 2 - 6, x + 12, height // 2 + 6], outline=colour, width=3)
        draw.text((x + 18, height // 2), text, fill=INK, font=font(13), anchor="lm")
        x += 18 + round(draw.textlength(text, font=font(13))) + 24
    draw.text((x, height // 2), "frame numbers; time from left to right", fill=TRUTH, font=font(13), anchor="lm")
