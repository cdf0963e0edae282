"""Codecs: what turns frames into latents and back.  Each declares its geometry, its scaling and a fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Identity:
    """What a codec's latents follow from: its fingerprint, and how earlier releases took it.

    fingerprint: sha256, hexadecimal, recorded from now on; earlier: what `fingerprint_of` was given by earlier
    releases; outdated: why what those made is not of these latents, "" where it is.
    """

    fingerprint: str
    earlier: tuple[tuple[str, tuple[Path, ...]], ...] = ()
    outdated: str = ""

    def accepts(self, recorded: str | None) -> bool:
        """Whether a recorded fingerprint, an earlier release's included, stands for these latents."""
        return recorded == self.fingerprint or (not self.outdated and recorded in self._earlier)

    def reason(self, recorded: str | None) -> str:
        """Of a recorded fingerprint that is not accepted: what has changed where that is known, else ""; for the end
        of a message.
        """
        return f": {self.outdated}" if self.outdated and recorded in self._earlier else ""

    @cached_property
    def _earlier(self) -> set[str]:
        found = set()
        for description, files in self.earlier:
            # A copy that nothing else reads may go, or be a link that leads nowhere.
            with contextlib.suppress(OSError):
                found.add(fingerprint_of(description, list(files)))
        return found


class Codec(Protocol):
    """Frames to latents and back.  Latents are scaled: about zero mean and unit variance.

    One whose latent frames each follow from one frame says so by `frame_by_frame = True`, has the most frames of a call
    in `batch_size`, and encodes by `encoded`: then ranks may share a video's frames.  Without, they share whole videos.
    """

    name: str
    channels: int
    spatial_stride: int
    temporal_stride: int
    identity: Identity
    fingerprint: str  # the identity's

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """float [F, 3, H, W] in [-1, 1] -> mean and log-variance (None: deterministic), float32 [f, channels, h, w] on
        the codec's device.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [f, channels, h, w] -> float32 [F, 3, H, W], clamped to [-1, 1]."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Codec:
        """Move in place; returns itself."""
        ...


def call_size(codec: Codec, frames: int) -> int:
    """Frames of each of the calls in which a video of so many is encoded, the last one padded to as many; all of them
    where the codec does not go frame by frame.

    It follows from the video alone: whoever encodes makes the same calls, and so gets the same bits.
    """
    return _even(frames, codec.batch_size) if getattr(codec, "frame_by_frame", False) else frames  # type: ignore


def _even(frames: int, most: int) -> int:
    """The size of as few calls as possible, with as little padding as these allow."""
    return math.ceil(frames / math.ceil(frames / most))


def encoded(run: Callable[[Tensor], Tensor], video: Tensor, batch_size: int, like: Tensor) -> Tensor:
    """`batched`, in calls of `call_size` frames: the last one ends with the last frame again and again."""
    size = _even(len(video), batch_size)
    missing = -len(video) % size
    padded = torch.cat([video, video[-1:].expand(missing, -1, -1, -1)]) if missing else video
    return batched(run, padded, size, like)[: len(video)]


@torch.no_grad()
def batched(run: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int, like: Tensor) -> Tensor:
    """Apply ``run`` to slices of ``batch_size`` frames, in the dtype and on the device of ``like``; float32 out."""
    return torch.cat([run(part.to(like)).float() for part in inputs.split(batch_size)])


def check_video(video: Tensor, stride: int) -> None:
    if video.ndim != 4 or video.shape[1] != 3 or video.shape[2] % stride or video.shape[3] % stride or not len(video):
        raise UserError(
            f"encode: expected [F, 3, H, W] with H and W multiples of {stride}, got {list(video.shape)}; set "
            "data.size_multiple to suit"
        )


def fingerprint_of(description: str, files: list[Path]) -> str:
    """sha256 over the settings and the bytes of the weight files."""
    digest = hashlib.sha256(description.encode())
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
