"""Values that a factorised network of frame as prompt starts with (section 2 of tests/golden/vidgpt/README.md in
megatron_videogpt).  Needs torch alone.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

SILENT = ("attn_temp.proj", "attn_cf.proj", "cross_attn.proj", "final_layer.linear")
SMALL = ("t_embedder.", "t_block.", "y_embedder.y_proj.")
DEVIATION = 0.02


def start_of(key: str) -> str:
    """How a tensor starts, by its published name.

    zeros; xavier: uniform, on the weight flattened to a matrix; normal: of deviation 0.02; unit: normal of deviation
    1/sqrt(last size); identity: on the features, 0 on the mask channel.
    """
    if key.endswith(("scale_shift_table", "y_embedding")):
        return "unit"
    if key.endswith("attn_temp_pre_merge.weight"):
        return "identity"
    if key.endswith(".bias") or any(f"{name}.weight" in key for name in SILENT) or key == "bov_token":
        return "zeros"
    return "normal" if key.startswith(SMALL) else "xavier"


def start_value(key: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Float32 start value of a published tensor, drawn from (seed, key) alone: the same in every layout."""
    start = start_of(key)
    value = torch.zeros(shape, device="cpu")
    if start == "zeros":
        return value
    if start == "identity":
        return value.fill_diagonal_(1.0)
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    if start == "xavier":
        bound = math.sqrt(6.0 / (shape[0] + math.prod(shape[1:])))
        return value.uniform_(-bound, bound, generator=draws)
    return value.normal_(0.0, DEVIATION if start == "normal" else shape[-1] ** -0.5, generator=draws)
