"""What a tokenizer keeps of videos: PSNR, SSIM and LPIPS of what it rebuilds, which codes it uses, a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import UserError
from ..hub.common.fsq_tokenizer import FSQTokenizer, check_video
from ..sample.compare import Measure, compare
from ..sample.render import GAP, INK, PAPER, font, scaled
from .metrics import frechet_distance

CELLS = 4
SHOWN, ACROSS, SMALLEST = 4, 9, 96
"""Videos and frames of each in the picture; sides below this many pixels are enlarged."""


def codebook_use(ids: Tensor, levels: Sequence[int]) -> dict[str, Any]:
    """Which codes are used: ``{"tokens", "codes", "used", "share", "perplexity", "level_perplexity"}``.

    share: different codes over all there are; perplexity: exp of the entropy of how often each comes; level_perplexity:
    the same of the levels of each channel, at most their number.

    Args:
        ids: int64 ``[n]``, the first channel fastest (`fsq_codes.ids_of`).
    """
    size = math.prod(levels)
    counts = torch.bincount(ids.flatten(), minlength=size).double()
    by_level = []
    for channel, count in enumerate(levels):
        digits = ids.flatten() // math.prod(levels[:channel]) % count
        by_level.append(_perplexity(torch.bincount(digits, minlength=count).double()))
    used = int((counts > 0).sum())
    return {
        "tokens": ids.numel(),
        "codes": size,
        "used": used,
        "share": used / size,
        "perplexity": _perplexity(counts),
        "level_perplexity": by_level,
    }


def _perplexity(counts: Tensor) -> float:
    return float(torch.special.entr(counts / counts.sum()).sum().exp())


def rebuild(
    model: FSQTokenizer, videos: Sequence[np.ndarray], watch: Callable[[], None] = lambda: None
) -> tuple[list[np.ndarray], Tensor]:
    """What a tokenizer makes of videos, rounded to bytes, and the ids in between, int64 ``[n]``, all in a row.

    videos: uint8 ``[F, H, W, 3]`` each, 1 + 4n frames; UserError for others.  watch: told after each.
    """
    made, ids = [], []
    like = next(model.parameters())
    for video in videos:
        clip = torch.from_numpy(video).to(like).permute(3, 0, 1, 2)[None] / 255
        try:
            check_video(clip)
        except ValueError as error:
            raise UserError(str(error)) from error
        found = model.encode(clip)
        ids.append(found.cpu().flatten())
        made.append((255 * model.decode(found)[0]).round().byte().permute(1, 2, 3, 0).cpu().numpy())
        watch()
    return made, torch.cat(ids)


def score(
    made: Sequence[np.ndarray], true: Sequence[np.ndarray], ids: Tensor, levels: Sequence[int], lpips: Measure | None
) -> dict[str, Any]:
    """Numbers ready for JSON: means over videos of what `sample.compare.compare` has of each, and `codebook_use`.

    psnr_of_video: of each video's one mean squared error, not of single frames, the mean over videos; frechet: of
    `plain_features`, from two videos on.
    """
    each = [compare(one, other, lpips)["mean"] for one, other in zip(made, true, strict=True)]
    means = {name: [value[name] for value in each if value[name] is not None] for name in each[0]}
    errors = [np.square((one.astype(np.float64) - other) / 255).mean() for one, other in zip(made, true)]
    decibels = [-10 * math.log10(error) for error in errors if error]
    return {
        "videos": len(each),
        "psnr_of_video": sum(decibels) / len(decibels) if decibels else None,
        **{name: sum(values) / len(values) if values else None for name, values in means.items()},
        "frechet": _frechet(made, true),
        "codebook": codebook_use(ids, levels),
    }


def _frechet(made: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float | None:
    if len(made) < 2:
        return None
    rows = [torch.stack([plain_features(video) for video in side]) for side in (made, true)]
    return frechet_distance(*rows)


def plain_features(video: np.ndarray) -> Tensor:
    """float32 ``[6 * CELLS * CELLS]`` of a video uint8 ``[F, H, W, 3]``: its colours, and how much they change from
    frame to frame, as means over a grid of `CELLS` by `CELLS` cells and over time.

    What `frechet_distance` compares without any network's weights: it sees colour, place and amount of motion, no
    texture, and is no FVD.
    """
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    changes = frames.diff(dim=0).abs() if len(frames) > 1 else torch.zeros_like(frames)
    return torch.cat([adaptive_avg_pool2d(part, CELLS).mean(0).flatten() for part in (frames, changes)])


def picture(made: Sequence[np.ndarray], true: Sequence[np.ndarray], path: str | os.PathLike[str]) -> None:
    """Write a PNG: of the first videos frames from left to right, the true ones above what became of them.

    made, true: uint8 ``[F, H, W, 3]`` each.
    """
    bands = []
    for one, other in list(zip(made, true))[:SHOWN]:
        which = np.unique(np.linspace(0, len(one) - 1, min(ACROSS, len(one))).round().astype(int))
        factor = max(1, -(-SMALLEST // one.shape[1]))
        width, height = factor * one.shape[2], factor * one.shape[1]
        bands += [(which, [scaled(video[which], width, height) for video in (other, one)])]
    left, label = 70, 16
    sizes = [
        (left + len(which) * (rows[0].shape[2] + GAP), label + 2 * (rows[0].shape[1] + GAP)) for which, rows in bands
    ]
    sheet = Image.new("RGB", (max(w for w, _ in sizes) + GAP, sum(h for _, h in sizes) + GAP), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for (which, rows), (_, height) in zip(bands, sizes):
        side = rows[0].shape[1]
        for row, (name, tiles) in enumerate(zip(("true", "rebuilt"), rows)):
            y = top + label + row * (side + GAP)
            draw.text((left - 8, y + side // 2), name, fill=INK, font=font(13), anchor="rm")
            for place, tile in enumerate(tiles):
                x = left + place * (tile.shape[1] + GAP)
                sheet.paste(Image.fromarray(tile), (x, y))
                if not row:
                    middle = (x + tile.shape[1] // 2, top + label // 2)
                    draw.text(middle, str(which[place]), fill=INK, font=font(11), anchor="mm")
        top += height
    sheet.save(path)
