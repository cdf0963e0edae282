"""Reading video files with PyAV, from a path or from bytes.  Frames are numbered in presentation order, from 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np

from ...errors import UserError
from ..bad import BadVideo
from .container import (
    DEFAULTS,
    Blob,
    Limits,
    Video,
    check_count,
    check_size,
    clear_errors,
    identity,
    limits_of,
    name_of,
    opened,
)
from .pictures import VideoWriter, resize_frames, resized_shape, to_model_range, to_pixels, write_video

__all__ = [
    "BadVideo",
    "Blob",
    "Limits",
    "VideoInfo",
    "VideoWriter",
    "limits_of",
    "probe",
    "read_clip",
    "read_frames",
    "resize_frames",
    "resized_shape",
    "to_model_range",
    "to_pixels",
    "write_video",
]


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds: frames counted from the packets (headers lie), upright width and height in pixels."""

    path: str
    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class _Timeline:
    """Presentation times of all packets, ascending, in stream units (int64); None where the container has no usable
    ones.
    """

    count: int
    times: np.ndarray | None
    fps: float


def probe(video: Video, limits: Limits = DEFAULTS) -> VideoInfo:
    """Count the frames of a video and decode its first picture.

    Raises:
        BadVideo: missing, not a readable video, no frames, damaged, over the limits, or a picture side outside [8,
            8192].
    """
    shapes: list[tuple[int, int]] = []

    def look(frame: av.VideoFrame) -> np.ndarray:
        shapes.append(_upright(frame, np.empty((frame.height, frame.width), np.uint8)).shape)
        return np.empty(0)

    with clear_errors(video):
        timeline = _decode(video, [0], limits, 1, look)[0]
    height, width = shapes[-1]
    return VideoInfo(name_of(video), timeline.count, timeline.fps, width, height)


def read_frames(video: Video, indices: Sequence[int], limits: Limits = DEFAULTS, threads: int = 1) -> np.ndarray:
    """Decode the frames with the given numbers, in one pass from the last keyframe before the first of them.

    Args:
        video: a file that `probe` accepts, or its bytes.
        indices: frame numbers, strictly ascending.
        limits: see `Limits`.
        threads: of the decoder.

    Returns:
        uint8 array [len(indices), height, width, 3], RGB, upright.

    Raises:
        BadVideo: unreadable, over the limits, or frames missing.
        ValueError: indices empty or not ascending.
    """
    return _read(video, indices, limits, threads, _picture)


def read_clip(
    video: Video,
    indices: Sequence[int],
    longest_side: int,
    multiple: int,
    limits: Limits = DEFAULTS,
    threads: int = 1,
    decoder: str = "pyav",
) -> np.ndarray:
    """The frames with the given numbers, each resized as soon as it is decoded: equal to
    ``resize_frames(read_frames(...))``.

    Args:
        video, indices, limits, threads: as for `read_frames`.
        longest_side, multiple: as for `resize_frames`.
        decoder: "pyav", or one that `torchcodec.py` knows.

    Returns:
        uint8 array [len(indices), h, w, 3], RGB, upright.

    Raises:
        BadVideo: as `read_frames`, or too elongated to be resized.
        ValueError: indices empty or not ascending.
    """

    def small(frame: av.VideoFrame) -> np.ndarray:
        try:
            return resize_frames(_picture(frame)[None], longest_side, multiple)[0]
        except UserError as error:
            raise BadVideo(name_of(video), str(error), "too_elongated") from error

    if decoder != "pyav":
        from . import torchcodec

        return torchcodec.read_clip(video, indices, longest_side, multiple, limits, threads, decoder)
    return _read(video, indices, limits, threads, small)


def _read(
    video: Video, indices: Sequence[int], limits: Limits, threads: int, convert: Callable[[av.VideoFrame], np.ndarray]
) -> np.ndarray:
    wanted = [int(index) for index in indices]
    if not wanted or wanted[0] < 0 or any(b <= a for a, b in zip(wanted, wanted[1:])):
        raise ValueError(f"read_frames: indices {wanted[:8]}: must be ascending frame numbers from 0")
    with clear_errors(video):
        found = _decode(video, wanted, limits, threads, convert)[1]
    shapes = {picture.shape for picture in found.values()}
    if len(shapes) > 1:
        raise BadVideo(name_of(video), f"pictures of different sizes: {sorted(shapes)[:4]}")
    return np.stack([found[index] for index in wanted])


def _decode(
    video: Video, wanted: list[int], limits: Limits, threads: int, convert: Callable[[av.VideoFrame], np.ndarray]
) -> tuple[_Timeline, dict[int, np.ndarray]]:
    """Wanted frames by number; falls back to counting from the start where seeking by time is not exact."""
    remembered = _remembered(*identity(video, limits))
    with opened(video, limits, threads) as (container, stream):
        timeline = remembered[0] if remembered else _timeline(video, container, stream, limits)
        if not isinstance(video, Blob):
            remembered[:] = [timeline]
        if wanted[-1] >= timeline.count:
            raise BadVideo(
                name_of(video), f"frame {wanted[-1]} asked for, but it has {timeline.count} frames", "too_short"
            )
        if timeline.times is not None:
            number = {int(timeline.times[index]): index for index in wanted}
            if _sought(container, stream, int(timeline.times[wanted[0]])):
                found = _collect(video, container, stream, wanted, number, limits, convert)
                if len(found) == len(wanted):
                    return timeline, found
    with opened(video, limits, threads) as (container, stream):
        found = _collect(video, container, stream, wanted, None if timeline.times is None else number, limits, convert)
    missing = [index for index in wanted if index not in found]
    if missing:
        raise BadVideo(name_of(video), f"frame {missing[0]} could not be decoded (truncated or damaged file?)")
    return timeline, found


def _collect(
    video: Video,
    container,
    stream,
    wanted: list[int],
    number: dict[int, int] | None,
    limits: Limits,
    convert: Callable[[av.VideoFrame], np.ndarray],
) -> dict[int, np.ndarray]:
    """Decode forward until the last wanted frame; ``number`` maps times to wanted frame numbers (None: count)."""
    needed, found = set(wanted), {}
    last = None if number is None else max(number)
    for count, frame in enumerate(container.decode(stream)):
        index = count if number is None else number.get(frame.pts, -1)
        if index in needed:
            check_size(video, frame.width, frame.height, limits)
            found[index] = convert(frame)
        over = count >= wanted[-1] if last is None else frame.pts is not None and frame.pts > last
        if len(found) == len(wanted) or over:
            break
    return found


def _sought(container, stream, time: int) -> bool:
    """Go to the keyframe before a time; False where the container cannot."""
    try:
        container.seek(time, stream=stream)
    except (av.FFmpegError, OSError):
        return False
    return True


def _picture(frame: av.VideoFrame) -> np.ndarray:
    return _upright(frame, frame.to_ndarray(format="rgb24"))


def _upright(frame: av.VideoFrame, picture: np.ndarray) -> np.ndarray:
    """Undo a phone's rotation flag (multiples of 90 degrees)."""
    return np.rot90(picture, round(getattr(frame, "rotation", 0) / 90) % 4)


@lru_cache(maxsize=64)
def _remembered(path: str, size: int, modified: int) -> list[_Timeline]:
    """Where the first reader of a file leaves its time line for the next (bytes leave nothing)."""
    return []


def _timeline(video: Video, container, stream, limits: Limits) -> _Timeline:
    """Presentation times from the packets, without decoding; leaves the container at its end."""
    # Only the mp4 family keeps an exact table of its frames; AVI headers, for one, may claim what was cut off.
    claimed = stream.frames if "mp4" in container.format.name else 0
    check_count(video, claimed, limits)
    shown, count = [], 0
    for packet in container.demux(stream):
        if packet.size:
            count += 1
            if not packet.is_discard:
                shown.append(packet.pts)
            check_count(video, len(shown), limits)
    if claimed and not count:
        # Where a damaged offset points outside, FFmpeg refuses to read a file, and bytes just end there.
        raise BadVideo(name_of(video), f"not a readable video (none of its {claimed} frames is there)")
    if count < claimed:
        raise BadVideo(name_of(video), f"truncated: {count} of {claimed} frames are there", "truncated")
    if not shown:
        raise BadVideo(name_of(video), "no frames", "no_frames")
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if None in shown or len(set(shown)) < len(shown):
        return _Timeline(len(shown), None, rate)
    times = sorted(shown)
    if len(times) > 1 and stream.time_base:
        rate = float((len(times) - 1) / ((times[-1] - times[0]) * stream.time_base))
    return _Timeline(len(times), np.array(times, np.int64), rate)
