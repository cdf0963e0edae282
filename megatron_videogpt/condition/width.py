"""Width of text features."""

from __future__ import annotations

from .options import ConditionConfig


def text_width(options: ConditionConfig) -> int:
    return options.width or 64
