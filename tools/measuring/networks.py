"""Networks with random weights: for measurements of which only the shape matters, and for comparisons of layouts."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor


def spread(parameter: Any, config: Any, channels: int) -> Tensor:
    """Non-zero start value ``[...]`` float32 of a parameter, from its name alone.

    The real start has a zero head, which gives the backbone no gradient in the first step, and biases of zero.
    """

    shape = parameter.shape(config.model, channels)
    digest = hashlib.blake2b(parameter.hf.encode(), digest_size=7).digest()
    draws = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))
    if len(shape) > 1:
        return 0.5 * draws / math.sqrt(math.prod(shape[1:]))
    return (1.0 if "norm" in parameter.hf else 0.0) + 0.2 * draws
