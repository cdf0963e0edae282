"""Opening video files: limits that are checked before anything large is read, containers that open no other files, one
error for all damage.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av

from ...config.schema_data import DataConfig
from ..bad import BadVideo

LARGEST_SIDE = 8192  # a header that claims more is damaged or hostile
SMALLEST_SIDE = 8
LARGEST_CLAIM = 1 << 27  # pixels
MOST_BOXES = 300_000  # of an mp4 file; one with fragments of a second has ten a second
MOST_SAMPLES = 10_000_000  # of all tracks, in fragments
# Containers only: playlists, concatenations and session descriptions would make FFmpeg open other files and addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,mpegts,mpeg,mpegvideo,m4v,ogg,asf,yuv4mpegpipe"
# Everything that FFmpeg and PyAV were seen to raise, or may, over damaged files.
_BROKEN = (
    av.FFmpegError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Blob:
    """A video held in memory; ``name`` is for messages."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Limits:
    """What is refused before anything large is read or allocated: bytes of a file, frames, pixels of a picture."""

    bytes: int = 4_096_000_000
    frames: int = 1_000_000
    pixels: int = 36_000_000


DEFAULTS = Limits()
Video = str | os.PathLike[str] | Blob


def limits_of(config: DataConfig) -> Limits:
    """The limits that the options set."""
    return Limits(int(config.max_video_mb * 1e6), config.max_video_frames, int(config.max_megapixels * 1e6))


def name_of(video: Video) -> str:
    """For messages."""
    return video.name if isinstance(video, Blob) else os.fspath(video)


def identity(video: Video, limits: Limits) -> tuple[str, int, int]:
    """Name, size and modification time: a replaced file is read anew."""
    if isinstance(video, Blob):
        size, modified = len(video.data), 0
    else:
        try:
            status = os.stat(video)
        except (OSError, ValueError) as error:
            raise BadVideo(video, getattr(error, "strerror", None) or str(error), "missing") from error
        if not stat.S_ISREG(status.st_mode):
            raise BadVideo(video, "not a regular file")
        size, modified = status.st_size, status.st_mtime_ns
    if size == 0:
        raise BadVideo(name_of(video), "empty file", "no_frames")
    if size > limits.bytes:
        raise BadVideo(
            name_of(video), f"{size / 1e6:.1f} MB, more than data.max_video_mb={limits.bytes / 1e6:g}", "too_large"
        )
    return name_of(video), size, modified


def check_count(video: Video, frames: int, limits: Limits) -> None:
    """BadVideo when a video has, or claims, more frames than allowed."""
    if frames > limits.frames:
        raise BadVideo(name_of(video), f"{frames} frames or more, data.max_video_frames={limits.frames}", "too_large")


def check_size(video: Video, width: int, height: int, limits: Limits) -> None:
    """BadVideo when a picture is, or claims to be, larger than allowed, or smaller than a codec can use."""
    if width * height > limits.pixels:
        raise BadVideo(
            name_of(video),
            f"picture of {width}x{height} pixels, data.max_megapixels={limits.pixels / 1e6:g}",
            "too_large",
        )
    if not (SMALLEST_SIDE <= width <= LARGEST_SIDE and SMALLEST_SIDE <= height <= LARGEST_SIDE):
        kind = "too_large" if max(width, height) > LARGEST_SIDE else "too_small"
        raise BadVideo(
            name_of(video),
            f"picture of {width}x{height} pixels; sides must be within {SMALLEST_SIDE}..{LARGEST_SIDE}",
            kind,
        )


def _check_table(video: Video, file: BinaryIO, limits: Limits) -> None:
    """Refuse an mp4 file whose tables claim too many frames: FFmpeg allocates for all of them when it
    opens the file.
    """

    budget = iter(range(MOST_BOXES))
    many = BadVideo(name_of(video), "an mp4 file of too many parts", "too_large")

    def boxes(begin: int, end: int, path: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
        """(begin, end) of the contents of the boxes at a path."""
        for _ in budget:
            file.seek(begin)
            head = file.read(16)
            if len(head) < 8 or begin + 8 > end:
                return
            size, after = int.from_bytes(head[:4], "big"), 8
            if size == 1:
                size, after = int.from_bytes(head[8:16], "big"), 16
            size = size or end - begin
            if size < after:
                return
            if head[4:8] == path[0]:
                inside = (begin + after, min(begin + size, end))
                yield from boxes(*inside, path[1:]) if path[1:] else [inside]
            begin += size
        raise many

    def content(place: int) -> bytes:
        file.seek(place)
        return file.read(12)

    for track in boxes(0, 1 << 62, (b"moov", b"trak", b"mdia")):
        if any(content(place)[8:12] == b"vide" for place, _ in boxes(*track, (b"hdlr",))):
            for place, _ in boxes(*track, (b"minf", b"stbl", b"stsz")):
                check_count(video, int.from_bytes(content(place)[8:12], "big"), limits)
    samples = 0
    for run, _ in boxes(0, 1 << 62, (b"moof", b"traf", b"trun")):
        samples += int.from_bytes(content(run)[4:8], "big")
        if samples > max(limits.frames, MOST_SAMPLES):
            raise many
    file.seek(0)


class _Named(io.BytesIO):
    """Bytes with a name, whose extension helps FFmpeg to guess the format as it does for files."""

    name = ""


@contextmanager
def opened(video: Video, limits: Limits, threads: int) -> Iterator[tuple]:
    """(container, its first video stream), the size claimed by its header within limits."""
    source: str | _Named
    if isinstance(video, Blob):
        source = _Named(video.data)
        source.name = name_of(video)
        _check_table(video, source, limits)
    else:
        source = os.fspath(video)
        with open(source, "rb") as file:
            _check_table(video, file, limits)
    # FFmpeg looks at a few frames when it opens a file, and forgets sizes over max_pixels: there, only what no header
    # should claim is refused.
    options = {
        "max_pixels": str(max(limits.pixels, LARGEST_CLAIM)),
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
    }
    with av.open(source, options=options, metadata_errors="replace") as container:
        if not container.streams.video:
            raise BadVideo(name_of(video), "no video stream", "no_frames")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise BadVideo(name_of(video), "this FFmpeg has no decoder for it")
        if context.width or context.height:
            check_size(video, context.width, context.height, limits)
        context.thread_count = threads
        # FFmpeg counts lines rounded up.
        context.options = {"max_pixels": str(limits.pixels + 128 * LARGEST_SIDE)}
        yield container, stream


@contextmanager
def clear_errors(video: Video) -> Iterator[None]:
    """BadVideo in place of whatever FFmpeg makes of a damaged file; its message without error number and path."""
    try:
        yield
    except EOFError as error:
        raise BadVideo(name_of(video), "ends before its first frame", "no_frames") from error
    except _BROKEN as error:
        text = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise BadVideo(name_of(video), f"not a readable video ({text.rstrip('.')})") from error
