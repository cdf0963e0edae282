"""Frames by their presentation times, read from the packets of a file without decoding any: for containers and codecs
where one packet is one frame and its time tells the frame's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bad import BadVideo
from .container import Limits, Opened, Video, check_count, name_of
from .sps import may_hold_fields

TIMED = ("mp4", "matroska", "mpegts")
"""Formats with exact times.  AVI has none, MPEG-PS and raw streams for some frames only, Ogg for pages; FLV and ASF
round them.
"""
ONE_EACH = frozenset("h264 hevc vp8 vp9 av1 prores mjpeg ffv1 dnxhd png jpeg2000 ffvhuff huffyuv utvideo".split())
"""Codecs whose packets give one frame each, as far as `_gives_one` looks; MPEG-4 and its like have packets without."""
END_OF_SEQUENCE = b"\x48\x01"  # of HEVC: leading pictures of what follows are dropped


@dataclass(frozen=True, eq=False)
class Times:
    """Where frames are in a file whose times tell.

    times: int64, presentation times of all frames in stream units, ascending; entries: int64 [n, 3], of each packet
    that decoding can begin with: its frame's number, presentation time and decoding time; fps: frames a second.
    """

    times: np.ndarray
    entries: np.ndarray
    fps: float

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.times)


@dataclass
class _Packets:
    """What `_look` finds; plain: every packet gives one frame, and nothing is dropped or damaged."""

    shown: list[int | None]
    decoded: list[int | None]
    key: list[bool]
    plain: bool = True


def read_times(video: Video, opened: Opened, limits: Limits) -> Times | None:
    """The times of a file's frames; leaves the container at its end.  None where only decoding can tell.

    Raises:
        BadVideo: over the limits, truncated, or no frames.
    """
    formats, codec = opened.formats, opened.stream.codec_context.name
    timed = any(name in formats for name in TIMED) and codec in ONE_EACH
    if timed and codec == "h264":
        timed = not may_hold_fields(opened.stream.codec_context.extradata)
    # Only the mp4 family keeps an exact table of its frames; AVI headers, for one, may claim what was cut off.  An edit
    # list may leave a part of the table unused.
    claimed = min(opened.stream.frames, len(opened.stream.index_entries)) if "mp4" in formats else 0
    if not timed and not claimed:
        return None
    check_count(video, claimed, limits)
    packets = _look(video, opened, limits, codec)
    if claimed and not packets.shown:
        # Where a damaged offset points outside, FFmpeg refuses to read a file, and bytes just end there.
        raise BadVideo(name_of(video), f"not a readable video (none of its {claimed} frames is there)")
    if len(packets.shown) < claimed:
        raise BadVideo(name_of(video), f"truncated: {len(packets.shown)} of {claimed} frames are there", "truncated")
    if not packets.shown:
        raise BadVideo(name_of(video), "no frames", "no_frames")
    return _times_of(packets, opened) if timed and packets.plain else None


def _look(video: Video, opened: Opened, limits: Limits, codec: str) -> _Packets:
    found = _Packets([], [], [])
    ended = False
    for packet in opened.container.demux(opened.stream):
        if not packet.size:
            continue
        key = packet.is_keyframe
        found.shown.append(packet.pts)
        found.decoded.append(packet.dts)
        found.key.append(key)
        if packet.is_discard or packet.is_corrupt or ended or not _gives_one(packet, codec):
            found.plain = False
        ended = codec == "hevc" and bytes(memoryview(packet)[-2:]) == END_OF_SEQUENCE
        check_count(video, len(found.shown), limits)
    return found


def _gives_one(packet, codec: str) -> bool:
    """Whether a packet shows a frame: VP8 and VP9 have some that only later ones refer to (RFC 6386, 9.1; VP9
    bitstream 0.6, 6.2).
    """
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        first, last = memoryview(packet)[0], memoryview(packet)[-1]
        if last & 0xE0 == 0xC0:
            return True  # a superframe: hidden frames and the one that is shown
        reserved = first & 0x30 == 0x30  # profile 3 has one more bit
        shown_again, shown = first >> 3 - reserved & 1, first >> 1 - reserved & 1
        return bool(shown_again or shown)
    return True


def _times_of(packets: _Packets, opened: Opened) -> Times | None:
    """None where times are missing, twice the same, run back, or where frames come before the first that can stand
    alone.
    """
    if None in packets.shown or None in packets.decoded and "matroska" not in opened.formats:
        return None
    shown, key = np.array(packets.shown, np.int64), np.array(packets.key, bool)
    decoded = np.array([pts if dts is None else dts for pts, dts in zip(packets.shown, packets.decoded)], np.int64)
    times = np.sort(shown)
    known = np.array([dts is not None for dts in packets.decoded])
    if not key[0] or shown[0] != times[0] or (np.diff(times) <= 0).any():
        return None
    if (np.diff(decoded[known]) <= 0).any() or (shown < decoded).any():
        return None
    number = np.searchsorted(times, shown)
    if opened.stream.codec_context.name == "h264" and _depth(number) > _known_depth(opened):
        return None
    base = opened.stream.time_base
    rate = float(opened.stream.average_rate or opened.stream.guessed_rate or 25)
    if len(times) > 1 and base:
        rate = float((len(times) - 1) / (int(times[-1] - times[0]) * base))
    return Times(times, np.stack([number, shown, decoded], 1)[key], rate)


def _depth(number: np.ndarray) -> int:
    """Frames that a decoder must hold back to give them in order: most that come earlier and are shown later."""
    latest = np.maximum.accumulate(number)
    late = np.flatnonzero(number < latest)
    # A frame that is shown at place n and comes at place i > n had i - n later ones before it.
    return int((late - number[late]).max(initial=0))


def _known_depth(opened: Opened) -> int:
    """What FFmpeg found out about that when it opened the file; frames beyond it would be dropped."""
    return getattr(opened.stream.codec_context, "reorder_depth", 1 << 30)
