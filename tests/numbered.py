"""Videos whose pictures carry their own number, in any container and codec that PyAV's FFmpeg writes."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 64


def picture(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """uint8 [height, width, 3]: the number's twelve lowest bits as 4 x 3 squares, white for 1, on grey."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 4)
        top, bottom = row * height // 3 + 2, (row + 1) * height // 3 - 2
        left, right = column * width // 4 + 2, (column + 1) * width // 4 - 2
        pixels[top:bottom, left:right] = 235 if number >> bit & 1 else 20
    return pixels


def number_of(pixels: np.ndarray, rows: int = 3) -> int:
    """The number that a picture carries, after any lossy codec; of pictures with 4 squares in each of so many rows."""
    height, width = pixels.shape[:2]
    found = 0
    for bit in range(4 * rows):
        row, column = divmod(bit, 4)
        y, x = (2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // 8
        found |= int(pixels[y - 3 : y + 3, x - 3 : x + 3].mean() > 110) << bit
    return found


def encode(
    container: str,
    codec: str,
    numbers: Sequence[int],
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    rate: Fraction = Fraction(25),
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (SIDE, SIDE),
    container_options: Mapping[str, str] | None = None,
    group: int = 12,
    between: int = 0,
) -> bytes:
    """A video of pictures with these numbers, encoded and muxed by PyAV's FFmpeg.

    Args:
        container, codec, pixels, options, container_options: FFmpeg's names.
        times: of each frame in units of 1/rate; 0, 1, ... where None.
        group: frames from one key frame to the next; between: B-frames in a row at most.
    """
    # A file, because some options of muxers read back what they wrote.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, options=dict(container_options or {})) as output,
    ):
        stream = output.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = group, between
        stream.codec_context.time_base = 1 / rate
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = (place if times is None else times[place]), 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def sequential(data: bytes, rows: int = 3) -> list[int]:
    """Numbers of the frames that FFmpeg gives one after another, a packet that it refuses giving none."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.best("video")
        for packet in [*(packet for packet in container.demux(stream) if packet.size), None]:
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue
            found += [number_of(frame.to_ndarray(format="rgb24"), rows) for frame in frames]
    return found
