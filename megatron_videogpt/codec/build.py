"""The codec that a configuration names."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from ..config.sections import find
from ..errors import UserError
from .base import Codec
from .diffusers_vae import KLCodec, WanCodec
from .fsq import FSQCodec
from .geometry import FSQ_NAMES, PIXELS, diffusers_settings, outside_package
from .options import CodecConfig
from .pixels import PixelCodec
from .tiny import TinyCodec


def build_codec(config: CodecConfig) -> Codec:
    """Load the codec; ValueError, one line, when the name is unknown or its folder is not usable.

    That of another distribution has a module `codec`: ``build(options)`` -> `base.Codec`.
    """
    config = _own(config)
    package = outside_package(config)
    if package:
        made: Codec = importlib.import_module(f"{package}.codec").build(config)
        return made
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


def _own(config: Any) -> Any:
    """The codec's own options; of a command that knows but a name, a folder and a batch, what it has of them."""
    section = find("codec", config.name)
    if isinstance(config, section.options) or not section.package:
        return config
    known = {item.name for item in fields(section.options)} & {item.name for item in fields(config)}
    return section.options(**{name: getattr(config, name) for name in known})
