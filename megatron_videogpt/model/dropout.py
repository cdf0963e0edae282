"""Dropout whose mask follows from (token, place in the model, channel) alone: every parallel layout, packing and
recomputation draws the same one, and the backward pass draws it again instead of keeping it.

A channel's 32 bits: with `seed` output number `site` of the token's splitmix64 (`sequence.identity.stream`), low and
high its halves, and c the channel::

    x = low + c * 0x9E3779B9;  x ^= x >> 16;  x *= 0x85EBCA6B;  x ^= high
    x ^= x >> 13;  x *= 0xC2B2AE35;  x ^= x >> 16

modulo 2**32 with shifts that bring in zeros (murmur3's constants).  Bits that, as a signed number, are below
``floor(rate * 2**32) - 2**31`` drop the channel; the others are divided by 1 - rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..sequence.identity import stream

EMBEDDING = 0
"""Site of the sum of embeddings."""
AT_ONCE = 1 << 24
"""Elements whose bits are drawn together, which bounds the memory that it takes."""


def sites(layer: int) -> tuple[int, int]:
    """Of a layer's attention and of its feed-forward; layers count from 1 over the whole model, as megatron-core's."""
    return 2 * layer - 1, 2 * layer


def kept(identity: Tensor, site: int, width: int, rate: float) -> Tensor:
    """Bool ``[l, width]``: which channels of tokens with these identities (int64 ``[l]``) stay."""
    seed = stream(identity, site)[:, None]
    # Halves with their sign, so that the cast to 32 bits is exact.
    low, high = ((seed << 32) >> 32).int(), (seed >> 32).int()
    channel = torch.arange(width, dtype=torch.int32, device=identity.device)
    x = low + channel * _signed(0x9E3779B9)
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(0x85EBCA6B)
    x ^= high
    x ^= (x >> 13) & 0x7FFFF
    x *= _signed(0xC2B2AE35)
    x ^= (x >> 16) & 0xFFFF
    return x >= int(rate * 2**32) - 2**31


def _signed(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def _masked(x: Tensor, identity: Tensor, site: int, rate: float) -> Tensor:
    out = x * (1.0 / (1.0 - rate))
    step = max(1, AT_ONCE // x.shape[-1])
    for rows, tokens in zip(out.split(step), identity.split(step)):
        rows.masked_fill_(~kept(tokens, site, x.shape[-1], rate)[:, None], 0.0)
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, identity: Tensor, site: int, rate: float) -> Tensor:
        ctx.save_for_backward(identity)
        ctx.site, ctx.rate = site, rate
        return _masked(x, identity, site, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (identity,) = ctx.saved_tensors
        return _masked(grad, identity, ctx.site, ctx.rate), None, None, None


def dropout(x: Tensor, identity: Tensor | None, site: int, rate: float) -> Tensor:
    """``[l, 1, D]`` -> the same shape; identity: int64 ``[l]`` of its tokens, None where nothing is dropped."""
    return x if identity is None else _Dropout.apply(x, identity, site, rate)


def with_bias(output: tuple[Tensor, Tensor | None]) -> Tensor:
    """What a linear layer of megatron-core's gives, with the bias that it leaves to be added."""
    out, bias = output
    return out if bias is None else out + bias
