"""Tensors of 8-bit formats, by name."""

from __future__ import annotations

from ...absent import absent

QuantizedTensor = absent("QuantizedTensor")
