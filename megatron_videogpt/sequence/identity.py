"""A number for each token that is the same wherever the token is computed: what is drawn by it is so in every parallel
layout and packing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""splitmix64's step."""


def _signed(value: int) -> int:
    """The 64-bit integer with the bits of an unsigned one."""
    return (value + 2**63) % 2**64 - 2**63


def splitmix64(state: Tensor) -> Tensor:
    """Next output of splitmix64 (Steele, Lea and Flood 2014) for each state, a bijection: int64 of any shape, unchanged
    -> int64, all taken as bits of unsigned integers, whose products and sums lose their carry.
    """
    z = state + _signed(GOLDEN)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= (z >> shift) & (2 ** (64 - shift) - 1)
        z *= _signed(factor)
    return z.bitwise_xor_((z >> 31) & (2**33 - 1))


def stream(state: Tensor, number: int) -> Tensor:
    """Output `number`, from 0, of the generators that start in these states."""
    return splitmix64(state + _signed(number * GOLDEN % 2**64))


def identities(keys: Sequence[int], lengths: Sequence[int], total: int) -> Tensor:
    """Of a row of sequences with these keys (of their samples, 0 to 2**63 - 1) and tokens: int64 ``[total]``, token i
    of a sequence has ``splitmix64(key) + i``, padding 0.
    """
    starts = splitmix64(torch.tensor(keys, dtype=torch.int64))
    parts = [start + torch.arange(length) for start, length in zip(starts, lengths)]
    return torch.cat([*parts, torch.zeros(total - sum(lengths), dtype=torch.int64)])
