"""A stand-in for NVIDIA's Transformer Engine on a CPU; see ../README.md."""

from __future__ import annotations

from . import common, pytorch

__version__ = "2.20.2"
__all__ = ["common", "pytorch"]
