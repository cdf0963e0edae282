"""Decoding with torchcodec, where it is installed, on the CPU or on an NVIDIA GPU (``data.decoder``); PyAV
(`decode.py`) is the default.

On the CPU the pictures equal PyAV's to the bit for the usual formats; a GPU's colours may differ by a level or two.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UserError
from ..bad import BadVideo
from .container import Blob, Limits
from .pictures import resize_frames

AT_ONCE = 8  # full-size frames held in memory
DECODERS = ("torchcodec", "torchcodec-cuda")


def check_torchcodec(decoder: str) -> None:
    """Raise ValueError, one line, where torchcodec (or FFmpeg's shared libraries, which it loads) is missing."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        text = " ".join(str(error).split())[:160]
        raise UserError(
            f"data.decoder={decoder}: torchcodec does not load ({text}); install it and FFmpeg, or use "
            "data.decoder=pyav"
        ) from error


def read_clip(
    video: str | os.PathLike[str] | Blob,
    indices: Sequence[int],
    longest_side: int,
    multiple: int,
    limits: Limits,
    threads: int = 1,
    decoder: str = DECODERS[0],
) -> np.ndarray:
    """As `decode.read_clip`: uint8 ``[len(indices), h, w, 3]``; BadVideo when the file cannot be used, ValueError where
    torchcodec is missing.
    """
    check_torchcodec(decoder)
    from torchcodec.decoders import VideoDecoder

    name = video.name if isinstance(video, Blob) else os.fspath(video)
    try:
        size = len(video.data) if isinstance(video, Blob) else os.stat(video).st_size
    except OSError as error:
        raise BadVideo(name, error.strerror or str(error), "missing") from error
    if size > limits.bytes:
        raise BadVideo(name, f"{size:,} bytes, over the limit of {limits.bytes:,}", "too_large")
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if decoder == "torchcodec-cuda" else "cpu"
    try:
        # Exact seeking counts the frames, as PyAV's reader does: headers lie.
        source: Any = video.data if isinstance(video, Blob) else name
        reader = VideoDecoder(
            source, seek_mode="exact", num_ffmpeg_threads=threads, dimension_order="NHWC", device=device
        )
        _check(name, reader.metadata, list(indices), limits)
        parts = [list(indices[start : start + AT_ONCE]) for start in range(0, len(indices), AT_ONCE)]
        return np.concatenate(
            [
                resize_frames(reader.get_frames_at(indices=part).data.cpu().numpy(), longest_side, multiple)
                for part in parts
            ]
        )
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise BadVideo(name, f"torchcodec: {error}") from error


def _check(name: str, found: Any, indices: list[int], limits: Limits) -> None:
    frames, width, height = found.num_frames or 0, found.width or 0, found.height or 0
    if frames == 0:
        raise BadVideo(name, "no frames", "no_frames")
    if frames > limits.frames:
        raise BadVideo(name, f"{frames:,} frames, over the limit of {limits.frames:,}", "too_large")
    if width * height > limits.pixels:
        raise BadVideo(name, f"picture of {width}x{height} pixels, over the limit of {limits.pixels:,}", "too_large")
    if indices[-1] >= frames:
        raise BadVideo(name, f"frame {indices[-1]} asked for, but it has {frames} frames", "too_short")
