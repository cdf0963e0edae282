"""Classes that megatron-core derives its own from, or names."""

from __future__ import annotations

import enum

from ..absent import absent


class Format(enum.Enum):
    """Of 8-bit numbers."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"


class Recipe:
    """Base of recipes."""


DelayedScaling = absent("DelayedScaling", Recipe)
