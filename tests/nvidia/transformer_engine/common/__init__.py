"""Recipes of 8-bit formats, by name."""

from __future__ import annotations

from . import recipe

__all__ = ["recipe"]
