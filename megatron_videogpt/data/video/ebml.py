"""The elements of Matroska and WebM files, as far as they are read here: how the pictures are cropped (RFC 9559)."""

from __future__ import annotations

import os
from typing import BinaryIO

SEGMENT, CLUSTER, TRACKS, TRACK, VIDEO = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE0
BOTTOM, TOP, LEFT, RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
MOST_ELEMENTS = 10_000


def _number(file: BinaryIO, keep_marker: bool) -> int | None:
    """An EBML number of 1 to 8 bytes; -1 for a size that is not known, None at the end of the file."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    data = first + file.read(length - 1)
    if len(data) < length:
        return None
    value = int.from_bytes(data, "big")
    if keep_marker:
        return value
    value &= (1 << 7 * length) - 1
    return -1 if value == (1 << 7 * length) - 1 else value


def track_crops(file: BinaryIO) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels that each video track wants cut off, in the order of the file; [] where it
    is no Matroska file.
    """
    found: list[dict[int, int]] = []
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(MOST_ELEMENTS):
        element, size = _number(file, True), _number(file, False)
        if element is None or size is None or element == CLUSTER:
            break
        if element == VIDEO:
            found.append({})
        if element in (SEGMENT, TRACKS, TRACK, VIDEO):
            continue
        # A size that is not known, or of a damaged file.
        if not 0 <= size <= whole:
            break
        if element in (BOTTOM, TOP, LEFT, RIGHT) and size <= 8 and found:
            found[-1][element] = int.from_bytes(file.read(size), "big")
        else:
            file.seek(size, os.SEEK_CUR)
    return [tuple(crop.get(side, 0) for side in (LEFT, TOP, RIGHT, BOTTOM)) for crop in found]  # type: ignore[misc]
