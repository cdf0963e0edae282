"""Prompts that Pillow reads: single pictures, and GIF, WebP, PNG and AVIF files that move, as a browser shows them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from ..data.bad import DAMAGE, BadVideo
from ..data.video.container import Limits, check_count, identity
from ..data.video.pictures import resize_frames
from ..errors import UserError

# AVIF is in the wheels from Pillow 11.3 on.
_AVIF = [".avif"] if "avif" in features.modules and features.check_module("avif") else []
IMAGES = frozenset([*".bmp .jpeg .jpg .png .tif .tiff .webp".split(), *_AVIF])
MOVING = frozenset("AVIF GIF PNG WEBP".split())  # the further pictures of a TIFF or of a phone's JPEG are no later ones
QUICKEST = 10  # milliseconds: browsers take a frame of so many or less
SLOW = 100  # for one of so many
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its orientation in EXIF."""


def is_picture(path: Path) -> bool:
    """Whether Pillow reads it, by its ending.  A .gif is looked into, since much that is called so is an MP4."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in IMAGES
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith((b"GIF8", b"\x89PNG")) or head[8:12] == b"WEBP"


def count_pictures(path: Path, limits: Limits) -> int:
    """How many pictures follow each other: 1, or more where it moves; BadVideo as `read_pictures`."""
    with _opened(path, limits) as (_, numbers):
        return len(numbers)


def read_pictures(
    path: Path, wanted: Sequence[int], side: int, multiple: int, limits: Limits
) -> tuple[np.ndarray, float]:
    """Some pictures of a file, upright, transparent parts over white, at the model's size.

    Args:
        path: for which `is_picture` holds.
        wanted: their numbers, ascending, below `count_pictures`.
        side, multiple: longest side and what both sides are multiples of, in pixels, as for `resize_frames`.
        limits: of bytes, pictures and pixels of each.

    Returns:
        uint8 ``[len(wanted), h, w, 3]``, and how many pictures a second are shown: by the mean of all durations, of
        which those up to 10 ms count as 100 ms, as in browsers (10 for a single picture).

    Raises:
        BadVideo: not readable, over the limits, or too elongated.
    """
    with _opened(path, limits) as (image, numbers):
        # After loading, with which Pillow turns TIFF files by itself.
        image.load()
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        found: list[np.ndarray] = []
        milliseconds, needed = 0.0, set(wanted)
        for count, number in enumerate(numbers):
            image.seek(number)
            _check_pixels(path, image, limits)
            image.load()
            duration = image.info.get("duration") or 0
            milliseconds += SLOW if duration <= QUICKEST else duration
            if count in needed:
                picture = _on_white(image)
                found.append(_resized(path, picture if turn is None else picture.transpose(turn), side, multiple))
    if len({frame.shape for frame in found}) > 1:
        raise BadVideo(path, "pictures of different sizes")
    return np.stack(found), 1000 * len(numbers) / milliseconds


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[tuple[Image.Image, range]]:
    """A file and Pillow's numbers of the pictures that are shown; BadVideo in place of what Pillow makes of damage."""
    identity(path, limits)
    try:
        with Image.open(path) as image:
            _check_pixels(path, image, limits)
            last = getattr(image, "n_frames", 1) if image.format in MOVING else 1
            # A PNG may begin with a picture for readers that cannot show the others.
            first = 1 if last > 1 and getattr(image, "default_image", False) else 0
            check_count(path, last - first, limits)
            yield image, range(first, last)
    except UnidentifiedImageError as error:
        raise BadVideo(path, "not a readable image") from error
    except EOFError as error:
        raise BadVideo(path, "ends before its last picture", "truncated") from error
    except (*DAMAGE, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise BadVideo(path, f"not a readable image ({error})") from error


def _check_pixels(path: Path, image: Image.Image, limits: Limits) -> None:
    # A GIF grows where a later picture reaches over its edge.
    if image.width * image.height > limits.pixels:
        raise BadVideo(
            path,
            f"{image.width}x{image.height} pixels, more than data.max_megapixels={limits.pixels / 1e6:g}",
            "too_large",
        )


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB."""
    if image.mode.startswith("I"):
        # Pillow cuts 16 bits off at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _resized(path: Path, picture: Image.Image, side: int, multiple: int) -> np.ndarray:
    try:
        return resize_frames(np.asarray(picture)[None], side, multiple)[0]
    except UserError as error:
        raise BadVideo(path, str(error), "too_elongated") from error
