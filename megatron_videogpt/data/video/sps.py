"""Whether an H.264 stream may hold fields: one flag of its sequence parameter sets (ITU-T H.264, 7.3.2.1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

WITH_CHROMA = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


class _Bits:
    def __init__(self, data: bytes) -> None:
        # Three bytes 0, 0, 3 stand for two zeros.
        self._text = "".join(f"{byte:08b}" for byte in re.sub(rb"\x00\x00\x03", b"\x00\x00", data))
        self._place = 0

    def fixed(self, count: int) -> int:
        """An unsigned number of so many bits."""
        self._place += count
        if self._place > len(self._text):
            raise ValueError("a sequence parameter set that ends early")
        return int(self._text[self._place - count : self._place] or "0", 2)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb number (9.1)."""
        zeros = self._text.find("1", self._place) - self._place
        if not 0 <= zeros <= 32:
            raise ValueError("a sequence parameter set that ends early")
        self._place += zeros
        return self.fixed(zeros + 1) - 1

    def signed(self) -> int:
        """A signed one (9.1.1)."""
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def may_hold_fields(extradata: bytes | None) -> bool:
    """Whether a stream with this header may have pictures of two fields each, which then may come in two packets; True
    where the header does not tell.
    """
    try:
        flags = [_frames_only(data) for data in _parameter_sets(extradata or b"")]
    except (ValueError, IndexError):
        return True
    return not flags or not all(flags)


def _parameter_sets(extradata: bytes) -> Iterator[bytes]:
    """Sequence parameter sets of a header, without their first byte."""
    if extradata[:1] == b"\x01":
        place = 6
        for _ in range(extradata[5] & 31):
            size = int.from_bytes(extradata[place : place + 2], "big")
            yield extradata[place + 3 : place + 2 + size]
            place += 2 + size
        return
    for unit in re.split(rb"\x00\x00\x01", extradata):
        if unit and unit[0] & 31 == 7:
            yield unit[1:]


def _frames_only(data: bytes) -> bool:
    bits = _Bits(data)
    profile = bits.fixed(8)
    bits.fixed(16)
    bits.golomb()
    if profile in WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            bits.fixed(1)
        bits.golomb()
        bits.golomb()
        bits.fixed(1)
        if bits.fixed(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.fixed(1):
                    _skip_scaling(bits, 16 if number < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.fixed(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()
    bits.fixed(1)
    bits.golomb()
    bits.golomb()
    return bool(bits.fixed(1))


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
