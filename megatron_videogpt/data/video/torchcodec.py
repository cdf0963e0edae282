"""Decoding with torchcodec, where it is installed, on the CPU or on an NVIDIA GPU (``data.decoder``); PyAV
(`decode.py`) is the default.

On the CPU the pictures equal PyAV's to the bit for the usual formats; a GPU's colours may differ by a level or two.
torchcodec does not tell when a decoder marked a frame as damaged: such frames are given out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..bad import shown
from .access import plain_times, too_short
from .container import Blob, Limits, Video, clear_errors, name_of
from .pictures import resize_frames

log = logging.getLogger(__name__)

AT_ONCE = 8  # full-size frames held in memory
SAME_TIME = 1e-6  # seconds; the ticks of containers are longer
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
    video: Video,
    indices: Sequence[int],
    longest_side: int,
    multiple: int,
    limits: Limits,
    threads: int = 1,
    decoder: str = DECODERS[0],
) -> np.ndarray | None:
    """As `decode.read_clip`: uint8 ``[len(indices), h, w, 3]``; None for a file that PyAV must read: whose frames'
    times do not tell, which is not shown as it was decoded, or of which torchcodec gives frames of other times or none.

    Raises:
        BadVideo: the file cannot be used.
        ValueError: torchcodec is missing.
    """
    check_torchcodec(decoder)
    from torchcodec.decoders import VideoDecoder

    name = name_of(video)
    wanted = list(indices)
    with clear_errors(video):
        seconds = plain_times(video, limits)
    if seconds is None:
        return None
    if wanted[-1] >= len(seconds):
        raise too_short(video, wanted[-1], len(seconds))
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if decoder == "torchcodec-cuda" else "cpu"
    source: Any = video.data if isinstance(video, Blob) else name
    if shown(name) != name:
        source = Path(name).read_bytes()
    try:
        # Exact seeking counts the frames, as PyAV's reader does: headers lie.
        reader = VideoDecoder(
            source, seek_mode="exact", num_ffmpeg_threads=threads, dimension_order="NHWC", device=device
        )
        if reader.metadata.rotation is not None or reader.metadata.num_frames != len(seconds):
            return None
        pictures = []
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            found = reader.get_frames_at(indices=part)
            if np.abs(found.pts_seconds.numpy() - seconds[part]).max() > SAME_TIME:
                return None
            pictures.append(resize_frames(found.data.cpu().numpy(), longest_side, multiple))
        return np.concatenate(pictures)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        # Of a damaged file, PyAV tells what is wrong.
        log.info("torchcodec cannot read %s, so PyAV does: %s", name, " ".join(str(error).split())[:200])
        return None
