"""The boxes of mp4 files, as far as they are read here: counts that FFmpeg would allocate for, clean apertures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

MOST_BOXES = 300_000  # of a file; one with fragments of a second has ten a second
MOST_SAMPLES = 10_000_000  # of all tracks, in fragments
SAMPLE_ENTRY = 86  # bytes of a video's sample entry before its boxes: ISO/IEC 14496-12, 12.1.3


class ManyBoxes(Exception):
    """A file of more than `MOST_BOXES` boxes, or more samples in fragments than allowed."""


class Boxes:
    """Looks boxes up in an open file; all of it together reads at most `MOST_BOXES` heads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._budget = iter(range(MOST_BOXES))
        self._size = file.seek(0, os.SEEK_END)

    def find(self, *path: bytes, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(begin, end) of the contents of the boxes at a path of types.

        A box of size 0 ends with what it lies in; zeros after the last box are none.  Raises `ManyBoxes`.
        """
        end = self._size if end is None else min(end, self._size)
        for _ in self._budget:
            if begin + 8 > end:
                return
            self._file.seek(begin)
            head = self._file.read(16)
            size, after = int.from_bytes(head[:4], "big"), 8
            if size == 1:
                size, after = int.from_bytes(head[8:16], "big"), 16
            size = size or end - begin
            if size < after:
                return
            if head[4:8] == path[0]:
                inside = (begin + after, min(begin + size, end))
                if path[1:]:
                    yield from self.find(*path[1:], begin=inside[0], end=inside[1])
                else:
                    yield inside
            begin += size
        raise ManyBoxes

    def read(self, place: int, size: int) -> bytes:
        """Bytes at a place."""
        self._file.seek(place)
        return self._file.read(size)

    def video_tracks(self) -> Iterator[tuple[int, int]]:
        """Contents of ``mdia`` of every video track."""
        for begin, end in self.find(b"moov", b"trak", b"mdia"):
            if any(self.read(place, 12)[8:12] == b"vide" for place, _ in self.find(b"hdlr", begin=begin, end=end)):
                yield begin, end

    def claimed_frames(self, most: int) -> Iterator[int]:
        """Frames that the table of each video track claims; then raises `ManyBoxes` where fragments claim more than
        ``most`` samples.
        """
        for begin, end in self.video_tracks():
            for place, _ in self.find(b"minf", b"stbl", b"stsz", begin=begin, end=end):
                yield int.from_bytes(self.read(place, 12)[8:12], "big")
        samples = 0
        for run, _ in self.find(b"moof", b"traf", b"trun"):
            samples += int.from_bytes(self.read(run, 8)[4:8], "big")
            if samples > most:
                raise ManyBoxes

    def clean_apertures(self) -> list[tuple[Fraction, ...] | None]:
        """(width, height, horizontal offset, vertical offset) of the part of the pictures that is to be shown, of each
        video track, in pixels; offsets are those of its centre from the picture's (ISO/IEC 14496-12, 12.1.4).  None:
        all of it, or no say.
        """
        return [self._clean_aperture(*track) for track in self.video_tracks()]

    def _clean_aperture(self, begin: int, end: int) -> tuple[Fraction, ...] | None:
        for place, stop in self.find(b"minf", b"stbl", b"stsd", begin=begin, end=end):
            size = int.from_bytes(self.read(place + 8, 4), "big")
            inside = (place + 8 + SAMPLE_ENTRY, min(place + 8 + size, stop))
            for found, _ in self.find(b"clap", begin=inside[0], end=inside[1]):
                values = [int.from_bytes(self.read(found + 4 * i, 4), "big", signed=i % 2 == 0) for i in range(8)]
                if all(values[1::2]):
                    return tuple(Fraction(*values[i : i + 2]) for i in (0, 2, 4, 6))
        return None
