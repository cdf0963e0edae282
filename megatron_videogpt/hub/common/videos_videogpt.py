"""What a user may pass as a video, as arrays of the size that training saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def to_videos(video: Any) -> list[np.ndarray]:
    """What a user may pass -> videos, uint8 ``[F, H, W, 3]`` each.

    A PIL image, a list of them, an array or tensor ``[H, W, 3]``, ``[F, H, W, 3]`` or ``[B, F, H, W, 3]`` (uint8 from 0
    to 255, or any floating dtype from 0 to 1), or a list of videos.

    Raises:
        ValueError: anything else, or pictures of different sizes in one video.
    """
    if isinstance(video, (Image.Image, np.ndarray, Tensor)):
        pixels = _bytes(video)
        return list(pixels) if pixels.ndim == 5 else [pixels if pixels.ndim == 4 else pixels[None]]
    if not isinstance(video, (list, tuple)) or not len(video):
        raise ValueError(
            f"video: {type(video).__name__} is not a video; pass PIL images, an array or tensor [F, H, W, 3], "
            "or a list of videos"
        )
    if all(isinstance(item, Image.Image) or getattr(item, "ndim", 0) == 3 for item in video):
        pictures = [_bytes(item) for item in video]
        sizes = sorted({picture.shape[:2] for picture in pictures})
        if len(sizes) > 1:
            raise ValueError(f"video: pictures of different sizes, {sizes[:4]} (height, width); resize them to one")
        return [np.stack(pictures)]
    return [pixels for item in video for pixels in to_videos(item)]


def _bytes(picture: Any) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if isinstance(picture, Tensor):
        # NumPy has no bfloat16.
        picture = picture.detach().cpu()
        values = (picture.float() if picture.is_floating_point() else picture).numpy()
    else:
        values = picture
    if not 3 <= values.ndim <= 5 or values.shape[-1] != 3 or not values.size:
        raise ValueError(f"video: an array {list(values.shape)}; expected [F, H, W, 3], colours last")
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating) or not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"video: {values.dtype} from {values.min()} to {values.max()}; expected uint8, or floats in [0, 1]"
        )
    return (values.astype(np.float32) * 255).round().astype(np.uint8)


def resize_frames(frames: np.ndarray, longest_side: int, multiple: int) -> np.ndarray:
    """The size that training saw: halved by box filter while the shorter side is at least twice the limit, bicubic to
    the limit on the longer side, then a centred crop of both sides to a multiple.

    Args:
        frames: uint8 ``[F, H, W, 3]``.

    Raises:
        ValueError: a side would be empty.
    """
    height, width = frames.shape[1:3]
    scale = longest_side / max(width, height)
    full = tuple(round(side * scale) for side in (width, height))
    target = tuple(side // multiple * multiple for side in full)
    if min(target) == 0:
        raise ValueError(
            f"video: {width}x{height} pictures at longest side {longest_side} have a side below {multiple} "
            "pixels; raise longest_side"
        )
    left, top = ((side - kept) // 2 for side, kept in zip(full, target))
    out = []
    for frame in frames:
        picture = Image.fromarray(frame)
        while min(picture.size) >= 2 * longest_side:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        if picture.size != full:
            picture = picture.resize(full, Image.Resampling.BICUBIC)
        out.append(np.asarray(picture)[top : top + target[1], left : left + target[0]])
    return np.stack(out)
