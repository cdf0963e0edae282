"""No codec at all: its latents are the frames, so that a codec can be trained on them by an objective."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Identity, check_video, fingerprint_of
from .geometry import PIXELS, PIXELS_GEOMETRY


class PixelCodec:
    """Frames as latents, as they are: three channels in [-1, 1], a latent frame a frame, a latent cell a pixel."""

    name = PIXELS

    def __init__(self) -> None:
        self.channels, self.spatial_stride, self.temporal_stride = PIXELS_GEOMETRY
        self.fingerprint = fingerprint_of(PIXELS, [])
        self.identity = Identity(self.fingerprint)
        self._place = torch.empty(0)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; no log-variance."""
        check_video(video, self.spatial_stride)
        return video.to(self._place.device, torch.float32), None

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return latents.to(self._place.device, torch.float32).clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PixelCodec:
        """See `Codec.to`; frames stay in float32."""
        self._place = self._place.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return self._place.device
