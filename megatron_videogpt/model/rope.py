"""Rotary positions from explicit position ids, Phi-3's long RoPE included (reference README section 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.schema import ModelConfig

ROPE_LENGTH = 5000
"""The sequence length that the released model always names to its rotary code, which chooses long or short factors by
it.
"""


def inverse_frequencies(model: ModelConfig) -> Tensor:
    """``[d/2]`` float32 frequencies; with long RoPE one set of factors holds for every length, as in the released
    model.
    """
    dim = model.head_dim
    plain = 1.0 / model.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if not model.rope_scaling:
        return plain
    longer = ROPE_LENGTH > model.original_max_position_embeddings
    factor = torch.tensor(model.rope_scaling["long_factor" if longer else "short_factor"], dtype=torch.float32)
    return 1.0 / (factor * model.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))


def attention_factor(model: ModelConfig) -> float:
    """What long RoPE multiplies cosines and sines by.  It multiplies queries and keys alike, so the softmax scale takes
    its square instead.
    """
    ratio = model.max_position_embeddings / model.original_max_position_embeddings
    if not model.rope_scaling or ratio <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(ratio) / math.log(model.original_max_position_embeddings))


def angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Position ids ``[L]`` -> angles ``[L, 1, 1, d]`` float32, half-split form, as megatron-core's RoPE takes them."""
    half = positions.float()[:, None] * frequencies
    return torch.cat([half, half], dim=-1)[:, None, None, :]
