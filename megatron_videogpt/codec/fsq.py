"""The tokenizer of next block prediction as a codec: its latents are codes, r / (l // 2) in a channel with l levels."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ..errors import UserError
from ..hub.common import fsq_codes
from ..hub.common.fsq_tokenizer import WEIGHTS, FSQTokenizer
from .base import Identity, check_video, fingerprint_of
from .geometry import codec_geometry, fsq_folder
from .options import CodecConfig


class FSQCodec:
    """A causal FSQ tokenizer (`hub/common/fsq_tokenizer.py`): 1 + 4n frames to 1 + n latent frames, deterministic.

    Codes are few and exact, in 16 bits too wherever every l // 2 is a power of two; `ids_of` turns them into token ids.
    ``codec.batch_size`` is the number of frames in the network at once.
    """

    def __init__(self, config: CodecConfig) -> None:
        self.name, self.geometry = config.name, codec_geometry(config)
        folder = fsq_folder(config)
        self.channels, self.spatial_stride = self.geometry.channels, self.geometry.spatial_stride
        self.temporal_stride = self.geometry.temporal_stride
        try:
            self.model = FSQTokenizer.from_pretrained(folder)
        except ValueError as error:
            raise UserError(f"{'codec.path=' if config.path else 'tiny_fsq: '}{error}") from error
        self.levels = self.model.shape.levels
        description = json.dumps(self.model.shape.to_dict(), sort_keys=True)
        self.fingerprint = fingerprint_of(description, [folder / WEIGHTS])
        self.identity = Identity(self.fingerprint)
        self.batch_size = config.batch_size

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Codec.encode`; codes and no log-variance.  ValueError unless there are 1 + 4n frames."""
        check_video(video, self.spatial_stride)
        self.geometry.latent_frames(len(video))
        pixels = (video.to(self._like) + 1) / 2
        return self.model.to_codes(pixels.transpose(0, 1)[None], self.batch_size)[0].transpose(0, 1), None

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec.decode`; latents between codes, which a model of continuous latents predicts, become the nearest
        codes.
        """
        codes = fsq_codes.nearest(latents.to(self.device), self.levels)
        video = self.model.to_video(codes.transpose(0, 1)[None], self.batch_size)
        return video[0].transpose(0, 1) * 2 - 1

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> FSQCodec:
        """See `Codec.to`; quantization stays in float32."""
        self.model.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """See `Codec.device`."""
        return self._like.device

    @property
    def _like(self) -> Tensor:
        return next(self.model.parameters())


def ids_of(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """int64 ids [f, h, w] of codes [f, d, h, w] as `FSQCodec.encode` gives them; UserError where they are codes of
    other levels, or none.
    """
    try:
        return fsq_codes.ids_of(codes, levels)
    except ValueError as error:
        raise UserError(str(error)) from error


def codes_of(ids: Tensor, levels: tuple[int, ...]) -> Tensor:
    """float32 codes [f, d, h, w] of ids [f, h, w]; UserError for ids outside the codebook."""
    try:
        return fsq_codes.codes_of(ids, levels)
    except ValueError as error:
        raise UserError(str(error)) from error
