"""Modules with states of 8-bit formats."""

from __future__ import annotations

from .linear import Linear

__all__ = ["Linear"]
