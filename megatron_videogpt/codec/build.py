"""The codec that a configuration names."""

from __future__ import annotations

from ..errors import UserError
from .base import Codec
from .diffusers_vae import KLCodec, WanCodec
from .fsq import FSQCodec
from .geometry import FSQ_NAMES, PIXELS, diffusers_settings
from .options import CodecConfig
from .pixels import PixelCodec
from .tiny import TinyCodec


def build_codec(config: CodecConfig) -> Codec:
    """Load the codec; ValueError, one line, when the name is unknown or its folder is not usable."""
    if config.batch_size < 1:
        raise UserError(f"codec.batch_size={config.batch_size}: must be at least 1")
    if config.name == "tiny":
        return TinyCodec(config.batch_size)
    if config.name == PIXELS:
        return PixelCodec()
    if config.name in FSQ_NAMES:
        return FSQCodec(config)
    settings = diffusers_settings(config)
    return (KLCodec if config.name == "autoencoder_kl" else WanCodec)(config, settings)
