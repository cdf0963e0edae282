"""Opening video files: limits that are checked before anything large is read, containers that open no other files, one
error for all damage.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import av
import av.stream
import numpy as np

from ...config.schema_data import DataConfig
from ...errors import UserError
from ..bad import DAMAGE, BadVideo
from .boxes import MOST_SAMPLES, Boxes, ManyBoxes
from .display import PLAIN, Display, Matrix, display_of, matrix_of
from .release import check_pyav

LARGEST_SIDE = 8192  # a header that claims more is damaged or hostile
SMALLEST_SIDE = 8
LARGEST_CLAIM = 1 << 27  # pixels
# Containers only: playlists, concatenations and session descriptions would make FFmpeg open other files and addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,mpegts,mpeg,mpegvideo,m4v,ogg,asf,yuv4mpegpipe,"
    "h264,hevc,mjpeg,ivf,obu,nut,mxf,dv,apng"
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
    """Refuse an mp4 file whose tables claim too many frames: FFmpeg allocates for all of them as it opens it."""
    try:
        for claimed in Boxes(file).claimed_frames(max(limits.frames, MOST_SAMPLES)):
            check_count(video, claimed, limits)
    except ManyBoxes as error:
        raise BadVideo(name_of(video), "an mp4 file of too many parts", "too_large") from error
    file.seek(0)


class _Named(io.BytesIO):
    """Bytes with a name, whose extension helps FFmpeg to guess the format as it does for files."""

    name = ""


@dataclass
class Opened:
    """A video that is open.  stream: the one that is read; display: how its pictures are shown; others: how many more
    video streams there are, pictures attached to the file not counted.
    """

    video: Video
    container: av.container.InputContainer
    stream: av.VideoStream
    display: Display
    others: int
    _matrices: list[Matrix] = field(default_factory=list)

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of a frame as a player shows it; BadVideo where its pixels are too elongated for that."""
        width, height = self.display.size(frame, self._matrix_by(frame))
        if max(width, height) > LARGEST_SIDE:
            reason = f"shown as {width}x{height} pixels; sides may have {LARGEST_SIDE}"
            raise BadVideo(name_of(self.video), reason, "too_elongated")
        return width, height

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [height, width, 3], RGB, as a player shows it; BadVideo as `size`."""
        if self.display != PLAIN:
            self.size(frame)
        return self.display.picture(frame, self._matrix_by(frame))

    def _matrix_by(self, frame: av.VideoFrame) -> Matrix:
        """The display matrix, from the first frame that is asked: a frame whose side data was looked at keeps its
        buffers until Python collects garbage, and decoding takes a fifth longer when all do.
        """
        if not self._matrices:
            self._matrices.append(matrix_of(frame))
        return self._matrices[0]

    def packets(self) -> Iterator[av.Packet]:
        """The stream's packets that hold something: AVI files have empty ones for frames that were dropped, and a
        decoder would take an empty one for the end.
        """
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def frames(self, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        """What packets decode to, the last frames that the decoder holds back included."""
        for packet in packets:
            yield from self.stream.codec_context.decode(packet)
        yield from self.stream.codec_context.decode(None)

    @property
    def formats(self) -> str:
        """FFmpeg's name of the container's format, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``."""
        return self.container.format.name


@contextmanager
def opened(video: Video, limits: Limits, threads: int) -> Iterator[Opened]:
    """Open a video; the size claimed by its header is within limits."""
    check_pyav()
    with _source(video) as file:
        _check_table(video, file, limits)
        # FFmpeg looks at a few frames when it opens a file, and forgets sizes over max_pixels: there, only what no
        # header should claim is refused.
        options = {
            "max_pixels": str(max(limits.pixels, LARGEST_CLAIM)),
            "format_whitelist": FORMATS,
            "protocol_whitelist": "file",
        }
        source = os.fspath(video) if not isinstance(video, Blob) and _is_text(os.fspath(video)) else file
        with av.open(source, options=options, metadata_errors="replace") as container:
            stream, track, others = _choose_stream(video, container)
            context = stream.codec_context
            if context is None:
                raise BadVideo(name_of(video), "this FFmpeg has no decoder for it")
            if context.width or context.height:
                check_size(video, context.width, context.height, limits)
            context.thread_count = threads
            # FFmpeg counts lines rounded up.
            context.options = {"max_pixels": str(limits.pixels + 128 * LARGEST_SIDE)}
            place = file.tell()
            size = (context.width, context.height)
            display = display_of(file, container.format.name, track, size, stream.sample_aspect_ratio)
            file.seek(place)
            yield Opened(video, container, stream, display, others)


@contextmanager
def _source(video: Video) -> Iterator[BinaryIO]:
    if isinstance(video, Blob):
        named = _Named(video.data)
        named.name = name_of(video)
        yield named
    else:
        with open(video, "rb") as file:
            yield file


def _is_text(path: str) -> bool:
    """Whether a path is Unicode; one that is not cannot be handed to FFmpeg by name."""
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)


def _choose_stream(video: Video, container: av.container.InputContainer) -> tuple[av.VideoStream, int, int]:
    """(stream, its number among the video tracks, how many others there are): no picture attached to the file (a cover,
    thumbnails), then the default track, then the one that FFmpeg thinks best.
    """
    kinds = av.stream.Disposition
    attached = kinds.attached_pic | kinds.timed_thumbnails
    tracks = [stream for stream in container.streams.video if not stream.disposition & attached]
    if not tracks:
        text = "no video stream" + (", only pictures attached to the file" if container.streams.video else "")
        raise BadVideo(name_of(video), text, "no_frames")
    marked = [stream for stream in tracks if stream.disposition & kinds.default] or tracks
    best = container.streams.best("video")
    chosen = next((stream for stream in marked if best is not None and stream.index == best.index), marked[0])
    return chosen, [stream.index for stream in tracks].index(chosen.index), len(tracks) - 1


@contextmanager
def clear_errors(video: Video) -> Iterator[None]:
    """BadVideo in place of whatever FFmpeg makes of a damaged file; its message without error number and path."""
    try:
        yield
    except UserError:
        raise
    except EOFError as error:
        raise BadVideo(name_of(video), "ends before its first frame", "no_frames") from error
    except (av.FFmpegError, *DAMAGE) as error:
        text = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise BadVideo(name_of(video), f"not a readable video ({text.rstrip('.')})") from error
