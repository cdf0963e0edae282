"""The codec that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError, shortened
from ..hub.common.tiny_codec import STRIDE, TinyAutoencoder, TinyShape
from .base import Identity, batched, check_video, encoded, fingerprint_of
from .geometry import TINY_WEIGHTS


class TinyCodec:
    """The shipped codec (`hub/common/tiny_codec.py`): stride 8, one latent frame a frame, deterministic."""

    name = "tiny"
    frame_by_frame = True

    def __init__(self, batch_size: int = 16, weights: Path = TINY_WEIGHTS) -> None:
        shape_file = weights.with_suffix(".json")
        try:
            shape = _tiny_shape(shape_file)
            self.model = TinyAutoencoder(shape).eval().requires_grad_(False)
            self.model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"tiny codec: {weights} or its .json is missing or damaged ({shortened(error)}); reinstall the package"
            ) from error
        self.channels, self.spatial_stride, self.temporal_stride = shape.channels, STRIDE, 1
        self.fingerprint = fingerprint_of(json.dumps(shape.to_dict(), sort_keys=True), [weights])
        self.identity = Identity(self.fingerprint)
        self.batch_size = batch_size

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; no log-variance."""
        check_video(video, self.spatial_stride)
        return encoded(self.model.encode, video, self.batch_size, self.model.shift), None

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return batched(self.model.decode, latents, self.batch_size, self.model.shift).clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TinyCodec:
        """See `Codec.to`."""
        self.model.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return next(self.model.parameters()).device


def _tiny_shape(path: Path) -> TinyShape:
    return TinyShape(**json.loads(path.read_text(encoding="utf-8")))
