"""Layers."""

from __future__ import annotations

import torch

from ..absent import absent
from . import distributed, ops, optimizers
from .fp8 import fp8_autocast, fp8_model_init
from .module import Linear
from .module.norms import LayerNorm, RMSNorm

GroupedLinear = absent("GroupedLinear", torch.nn.Module)
LayerNormLinear = absent("LayerNormLinear", torch.nn.Module)
DotProductAttention = absent("DotProductAttention", torch.nn.Module)

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "distributed",
    "fp8_autocast",
    "fp8_model_init",
    "ops",
    "optimizers",
]
