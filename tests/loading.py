"""Loaders of samples for next clip diffusion."""

from __future__ import annotations

from typing import Any

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.loader import Loader
from megatron_videogpt.data.sources.open import Source
from megatron_videogpt.objective.build import work_of


def loader_of(source: Source, codec: Codec, config: Config, *rest: Any, **more: Any) -> Loader:
    """`Loader` as the trainer makes it."""
    return Loader(source, codec, config, work_of(config, codec), *rest, **more)
