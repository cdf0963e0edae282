"""Reading videos with PyAV, from a path or from bytes.

Frame i is the i-th frame that decoding the file from its start gives, whatever its packets, times, fields, cuts and
edit lists are.  Random access gives that very picture, or a `BadVideo`.  Pictures are as a player shows them (see
`video/display.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import av.stream
import numpy as np

from ..errors import UserError
from .bad import BadVideo
from .video.access import Convert, OtherOrder, Table, decode, remember
from .video.container import DEFAULTS, Limits, Opened, Video, clear_errors, name_of
from .video.learned import Learned, learn
from .video.pictures import resize_frames

__all__ = ["BadVideo", "VideoInfo", "probe", "read_clip", "read_frames"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds: frames that can be decoded, and width and height in pixels as a player shows them.

    table: of a file whose times do not tell which frame is which, what `read_clip` needs to reach a frame without
    decoding all before it; empty for all others.
    """

    path: str
    frames: int
    fps: float
    width: int
    height: int
    table: bytes = field(default=b"", repr=False)


def probe(video: Video, limits: Limits = DEFAULTS) -> VideoInfo:
    """Count the frames of a video, by decoding all of it where its times do not tell, and decode its first picture.

    Raises:
        BadVideo: missing, not a readable video, no frames, damaged, over the limits, or a picture side outside
            [8, 8192].
    """
    with clear_errors(video):
        table, (width, height) = find_frames(video, limits)
    packed = table.pack() if isinstance(table, Learned) else b""
    return VideoInfo(name_of(video), table.count, table.fps, width, height, packed)


def find_frames(video: Video, limits: Limits) -> tuple[Table, tuple[int, int]]:
    """Where the frames of a video are, and width and height of the first as it is shown; errors as `decode`."""
    sizes: list[tuple[int, int]] = []

    def look(source: Opened, frame: av.VideoFrame) -> np.ndarray:
        if not sizes and source.others:
            log.warning("%s: %d video streams; %s is read", name_of(video), source.others + 1, _describe(source.stream))
        sizes.append(source.size(frame))
        return np.empty(0)

    try:
        table = decode(video, [0], limits, 1, look)[0]
    except OtherOrder:
        table = None
    if table is None:
        table = learn(video, limits)
        remember(video, limits, table)
        decode(video, [0], limits, 1, look)
    return table, sizes[-1]


def read_frames(
    video: Video, indices: Sequence[int], limits: Limits = DEFAULTS, threads: int = 1, table: bytes = b""
) -> np.ndarray:
    """Decode the frames with the given numbers, in one pass from the last entry before the first of them.

    Args:
        video: a file that `probe` accepts, or its bytes.
        indices: frame numbers, strictly ascending.
        limits: see `Limits`.
        threads: of the decoder.
        table: see `VideoInfo`; where a file needs one and there is none, all frames before the first are decoded.

    Returns:
        uint8 array [len(indices), height, width, 3], RGB, as a player shows them.

    Raises:
        BadVideo: unreadable, over the limits, or frames missing or damaged.
        ValueError: indices empty or not ascending.
    """
    return _read(video, indices, limits, threads, Opened.picture, table)


def read_clip(
    video: Video,
    indices: Sequence[int],
    longest_side: int,
    multiple: int,
    limits: Limits = DEFAULTS,
    threads: int = 1,
    decoder: str = "pyav",
    table: bytes = b"",
) -> np.ndarray:
    """The frames with the given numbers, each resized as soon as it is decoded: equal to
    ``resize_frames(read_frames(...))``.

    Args:
        video, indices, limits, threads, table: as for `read_frames`.
        longest_side, multiple: as for `resize_frames`.
        decoder: "pyav", or one that `torchcodec.py` knows.

    Returns:
        uint8 array [len(indices), h, w, 3], RGB, as a player shows them.

    Raises:
        BadVideo: as `read_frames`, or too elongated to be resized.
        ValueError: indices empty or not ascending.
    """

    def small(source: Opened, frame: av.VideoFrame) -> np.ndarray:
        try:
            return resize_frames(source.picture(frame)[None], longest_side, multiple)[0]
        except UserError as error:
            raise BadVideo(name_of(video), str(error), "too_elongated") from error

    if decoder != "pyav":
        from .video import torchcodec

        found = torchcodec.read_clip(video, indices, longest_side, multiple, limits, threads, decoder)
        if found is not None:
            return found
    return _read(video, indices, limits, threads, small, table)


def _read(
    video: Video, indices: Sequence[int], limits: Limits, threads: int, convert: Convert, table: bytes
) -> np.ndarray:
    wanted = [int(index) for index in indices]
    if not wanted or wanted[0] < 0 or any(b <= a for a, b in zip(wanted, wanted[1:])):
        raise ValueError(f"read_frames: indices {wanted[:8]}: must be ascending frame numbers from 0")
    with clear_errors(video):
        found = decode(video, wanted, limits, threads, convert, table)[1]
    shapes = {picture.shape for picture in found.values()}
    if len(shapes) > 1:
        raise BadVideo(name_of(video), f"pictures of different sizes: {sorted(shapes)[:4]}")
    return np.stack([found[index] for index in wanted])


def _describe(stream: av.VideoStream) -> str:
    default = ", the default one" if stream.disposition & av.stream.Disposition.default else ""
    return f"number {stream.index} ({stream.codec_context.width}x{stream.codec_context.height}{default})"
