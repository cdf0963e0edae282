"""The text encoder that a configuration names."""

from __future__ import annotations

from .base import TextEncoder
from .options import ConditionConfig


def build_encoder(options: ConditionConfig) -> TextEncoder:
    """Load the encoder of `condition.encoder`, on the CPU; UserError, one line, when its folder is not usable."""
    raise NotImplementedError
