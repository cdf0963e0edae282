"""From decoded pictures to what a player shows: cropped as the container asks for, pixels made square, turned and
mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from .boxes import Boxes
from .ebml import track_crops

SQUARE = Fraction(1)
NO_CROP = (0, 0, 0, 0)
Matrix = tuple[int, int, int, int] | None
"""See `matrix_of`."""


@dataclass(frozen=True)
class Display:
    """crop: pixels that the container cuts off at the left, top, right and bottom (the decoder has cropped by the
    codec's own header already); aspect: width of a pixel by its height.  The matrix that a file's frames carry comes
    on top.
    """

    crop: tuple[int, int, int, int] = NO_CROP
    aspect: Fraction = SQUARE

    def size(self, frame: av.VideoFrame, matrix: Matrix) -> tuple[int, int]:
        """(width, height) of a frame as it is shown."""
        width, height = self._stretched(*self._cropped(frame.width, frame.height))
        return (height, width) if _transposes(matrix) else (width, height)

    def picture(self, frame: av.VideoFrame, matrix: Matrix) -> np.ndarray:
        """uint8 [height, width, 3], RGB, as it is shown."""
        picture = frame.to_ndarray(format="rgb24")
        if self != PLAIN:
            height, width = picture.shape[:2]
            if self._cropped(width, height) != (width, height):
                left, top, right, bottom = self.crop
                picture = picture[top : height - bottom, left : width - right]
            size = self._stretched(picture.shape[1], picture.shape[0])
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        return turned(picture, matrix)

    def _cropped(self, width: int, height: int) -> tuple[int, int]:
        """Size after the crop, which counts for nothing where it leaves nothing (as in FFmpeg)."""
        left, top, right, bottom = self.crop
        inside = (width - left - right, height - top - bottom)
        return inside if min(inside) > 0 else (width, height)

    def _stretched(self, width: int, height: int) -> tuple[int, int]:
        """Size with square pixels: one side grows, none shrinks."""
        if self.aspect == SQUARE:
            return width, height
        if self.aspect > 1:
            return round(width * self.aspect), height
        return width, round(height / self.aspect)


PLAIN = Display()


def display_of(file: BinaryIO, formats: str, track: int, size: tuple[int, int], aspect: Fraction | None) -> Display:
    """What a file says of its pictures.

    Args:
        file: open for reading.
        formats: FFmpeg's name of its format.
        track: number of the video track, attached pictures not counted.
        size: width and height of its pictures; a clean aperture is given by its centre.
        aspect: of a pixel, as FFmpeg guesses it from container and codec; None or 0: not known, so square.
    """
    crops: list[tuple[int, int, int, int]] = []
    if "matroska" in formats:
        crops = track_crops(file)
    elif "mp4" in formats:
        crops = [_crop_to(aperture, *size) for aperture in Boxes(file).clean_apertures()]
    return Display(crops[track] if track < len(crops) else NO_CROP, aspect if aspect and aspect > 0 else SQUARE)


def _crop_to(aperture: tuple[Fraction, ...] | None, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) that a clean aperture cuts off; one that reaches outside counts for nothing."""
    if aperture is None:
        return NO_CROP
    wide, high, across, down = aperture
    left, top = round((width - wide) / 2 + across), round((height - high) / 2 + down)
    right, bottom = width - left - round(wide), height - top - round(high)
    return (left, top, right, bottom) if min(left, top, right, bottom) >= 0 else NO_CROP


def matrix_of(frame: av.VideoFrame) -> Matrix:
    """Signs (a, b, c, d) of a frame's display matrix, by which (x, y) is shown at (a x + c y, b x + d y): one of the
    eight ways to lay a picture down, the nearest one; None without a matrix.
    """
    numbers = matrix_numbers(frame)
    if not numbers:
        return None
    a, b, _, c, d = numbers
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def matrix_numbers(frame: av.VideoFrame) -> list[int]:
    """The first five of the nine numbers of a frame's display matrix, by rows; [] where it has none."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    return [] if data is None else np.frombuffer(bytes(data), np.int32)[:5].tolist()


def turned(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """[h, w, 3] -> the same pixels as a display matrix lays them down."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if _transposes(matrix):
        picture = picture.transpose(1, 0, 2)
    return picture[:: b + d, :: a + c]


def _transposes(matrix: Matrix) -> bool:
    return matrix is not None and matrix[0] == 0
