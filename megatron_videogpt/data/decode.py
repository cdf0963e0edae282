"""Reading and writing video files with PyAV.  Frames are numbered in presentation order, from 0."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megatron_videogpt.data.bad import BadVideo

LARGEST_SIDE = 8192  # a header that claims more is damaged or hostile
SMALLEST_SIDE = 8


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
    """Presentation times of all packets, ascending, in stream units; None where the container has no usable ones."""

    count: int
    times: tuple[int, ...] | None
    fps: float


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Count the frames of a video and look at its first picture.

    Raises:
        BadVideo: not a readable video, no frames, damaged, or a picture side outside [8, 8192].
    """
    timeline = _timeline(*_identity(path))
    try:
        with av.open(os.fspath(path)) as container:
            stream = _video_stream(path, container)
            first = next(iter(container.decode(stream)), None)
            if first is None:
                raise BadVideo(path, "no picture could be decoded")
            height, width = _upright(first, np.empty((first.height, first.width))).shape
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise BadVideo(path, _reason(error)) from error
    if not (SMALLEST_SIDE <= width <= LARGEST_SIDE and SMALLEST_SIDE <= height <= LARGEST_SIDE):
        raise BadVideo(path, f"picture of {width}x{height} pixels; sides must be within {SMALLEST_SIDE}..{LARGEST_SIDE}")
    return VideoInfo(os.fspath(path), timeline.count, timeline.fps, width, height)


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> np.ndarray:
    """Decode the frames with the given numbers, in one pass from the last keyframe before the first of them.

    Args:
        path: a file that `probe` accepts.
        indices: frame numbers, strictly ascending.

    Returns:
        uint8 array [len(indices), height, width, 3], RGB, upright.

    Raises:
        BadVideo: unreadable, or frames missing.
        ValueError: indices empty or not ascending.
    """
    wanted = [int(index) for index in indices]
    if not wanted or wanted[0] < 0 or any(b <= a for a, b in zip(wanted, wanted[1:])):
        raise ValueError(f"read_frames: indices {wanted[:8]}: must be ascending frame numbers from 0")
    timeline = _timeline(*_identity(path))
    if wanted[-1] >= timeline.count:
        raise BadVideo(path, f"frame {wanted[-1]} asked for, but it has {timeline.count} frames")
    try:
        found = _decode(path, timeline, wanted)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise BadVideo(path, _reason(error)) from error
    missing = [index for index in wanted if index not in found]
    if missing:
        raise BadVideo(path, f"frame {missing[0]} could not be decoded (truncated or damaged file?)")
    return np.stack([found[index] for index in wanted])


def _decode(path: str | os.PathLike[str], timeline: _Timeline, wanted: list[int]) -> dict[int, np.ndarray]:
    """Wanted frames by number; falls back to counting from the start where seeking by time is not exact."""
    number = None if timeline.times is None else {time: index for index, time in enumerate(timeline.times)}
    if timeline.times is not None and wanted[0] > 0:
        with av.open(os.fspath(path)) as container:
            stream = _video_stream(path, container)
            container.seek(timeline.times[wanted[0]], stream=stream)
            found = _collect(path, container, stream, wanted, number)
        if len(found) == len(wanted):
            return found
    with av.open(os.fspath(path)) as container:
        return _collect(path, container, _video_stream(path, container), wanted, number)


def _collect(path: str | os.PathLike[str], container, stream, wanted: list[int], number: dict[int, int] | None) -> dict[int, np.ndarray]:
    """Decode forward until the last wanted frame; ``number`` maps times to frame numbers (None: count)."""
    needed, found = set(wanted), {}
    for count, frame in enumerate(container.decode(stream)):
        index = count if number is None else number.get(frame.pts, -1)
        if index in needed:
            if max(frame.width, frame.height) > LARGEST_SIDE:
                raise BadVideo(path, f"picture of {frame.width}x{frame.height} pixels")
            found[index] = _upright(frame, frame.to_ndarray(format="rgb24"))
        if len(found) == len(wanted) or index > wanted[-1]:
            break
    return found


def _upright(frame: av.VideoFrame, picture: np.ndarray) -> np.ndarray:
    """Undo a phone's rotation flag (multiples of 90 degrees)."""
    return np.rot90(picture, round(getattr(frame, "rotation", 0) / 90) % 4)


def _identity(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Path, size and modification time: a replaced file is probed anew."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise BadVideo(path, error.strerror or str(error)) from error
    if stat.st_size == 0:
        raise BadVideo(path, "empty file")
    return os.fspath(path), stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _timeline(path: str, size: int, modified: int) -> _Timeline:
    """Presentation times from the packets, without decoding."""
    try:
        with av.open(path) as container:
            stream = _video_stream(path, container)
            packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
            # Only the mp4 family keeps an exact table of its frames; AVI headers, for one, may claim what was cut off.
            claimed, base = stream.frames if "mp4" in container.format.name else 0, stream.time_base
            rate = float(stream.average_rate or stream.guessed_rate or 25)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise BadVideo(path, _reason(error)) from error
    if len(packets) < claimed:
        raise BadVideo(path, f"truncated: {len(packets)} of {claimed} frames are there")
    shown = [time for time, discarded in packets if not discarded]
    if not shown:
        raise BadVideo(path, "no frames")
    times = None if None in shown or len(set(shown)) < len(shown) else tuple(sorted(shown))
    if times is not None and len(times) > 1 and base:
        rate = float((len(times) - 1) / ((times[-1] - times[0]) * base))
    return _Timeline(len(shown), times, rate)


def _video_stream(path: str | os.PathLike[str], container):
    if not container.streams.video:
        raise BadVideo(path, "no video stream")
    stream = container.streams.video[0]
    # One decoding thread: loader processes already fill the cores.
    stream.codec_context.thread_count = 1
    return stream


def _reason(error: BaseException) -> str:
    """FFmpeg's message without its error number and path."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return f"not a readable video ({text.rstrip('.')})"


def resize_frames(frames: np.ndarray, longest_side: int, multiple: int) -> np.ndarray:
    """Bring frames to a longest side, then crop both sides to a multiple (reference README, section 11).

    Halved with a box filter while the shorter side is at least twice the limit, bicubic to the limit on the longer side
    (small pictures grow), then a centred crop.

    Args:
        frames: uint8 [F, H, W, 3].
        longest_side: pixels, a multiple of ``multiple``.
        multiple: both returned sides are multiples of this.

    Returns:
        uint8 [F, h, w, 3] with max(h, w) = longest_side.

    Raises:
        ValueError: the shorter side would be empty.
    """
    height, width = frames.shape[1:3]
    target_w, target_h = resized_shape(width, height, longest_side, multiple)
    scale = longest_side / max(width, height)
    full_w, full_h = max(target_w, round(width * scale)), max(target_h, round(height * scale))
    left, top = (full_w - target_w) // 2, (full_h - target_h) // 2
    out = np.empty((len(frames), target_h, target_w, 3), np.uint8)
    for i, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        while min(picture.size) >= 2 * longest_side:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        if picture.size != (full_w, full_h):
            picture = picture.resize((full_w, full_h), Image.Resampling.BICUBIC)
        out[i] = np.asarray(picture)[top : top + target_h, left : left + target_w]
    return out


def resized_shape(width: int, height: int, longest_side: int, multiple: int) -> tuple[int, int]:
    """(width, height) that `resize_frames` returns; ValueError when a side would be empty."""
    scale = longest_side / max(width, height)
    target = (round(width * scale) // multiple * multiple, round(height * scale) // multiple * multiple)
    if min(target) == 0:
        raise ValueError(f"a {width}x{height} picture at longest side {longest_side} has a side below {multiple} pixels: raise data.longest_side")
    return target


def to_model_range(frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


def to_pixels(video: Tensor) -> np.ndarray:
    """float [F, 3, H, W] in [-1, 1] (clamped) -> uint8 [F, H, W, 3]; inverse of `to_model_range`."""
    return ((video.detach().float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Write uint8 [F, H, W, 3] as H.264 (yuv420p, mp4), which every player and browser shows.

    Odd sides get one repeated row or column, because yuv420p needs even ones.  The file appears under its name only when complete.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"write_video: expected uint8 [F, H, W, 3] with F >= 1, got {frames.dtype} {list(frames.shape)}")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    partial = f"{os.fspath(path)}.partial"
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "16", "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
