"""megatron-core's core attention: the mask as intervals instead of a matrix, and context parallelism over heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..attention import attend
from .cache import CachedRow

Store = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""Keys and values of the tokens of a row ``[L, heads, d]`` -> those that its intervals count in
``[rows, heads, d]``.
"""


class _Exchange(torch.autograd.Function):
    """Equal all-to-all over the first dimension; its gradient is the same exchange."""

    @staticmethod
    def forward(ctx: Any, group: Any, x: Tensor) -> Tensor:
        """Part i of the first dimension goes to rank i of the group."""
        ctx.group = group
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        torch.distributed.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        """The exchange is its own inverse."""
        return None, _Exchange.apply(ctx.group, grads[0])


def to_heads(x: Tensor, group: Any) -> Tensor:
    """A shard of the tokens with all heads ``[L/cp, H, d]`` -> all tokens with a share of the heads ``[L, H/cp, d]``
    (Ulysses, Jacobs et al. 2023).
    """
    tokens, heads, width = x.shape
    size = group.size()
    parts = x.view(tokens, size, heads // size, width).transpose(0, 1)
    return _Exchange.apply(group, parts).reshape(size * tokens, heads // size, width)


def to_tokens(x: Tensor, group: Any) -> Tensor:
    """All tokens with a share of the heads ``[L, H/cp, d]`` -> a shard of the tokens with all heads ``[L/cp, H, d]``;
    the inverse of `to_heads`.
    """
    tokens, heads, width = x.shape
    size = group.size()
    parts = _Exchange.apply(group, x.reshape(size, tokens // size, heads, width))
    return parts.transpose(0, 1).reshape(tokens // size, size * heads, width)


def exchange_attention(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    scale: float,
    group: Any,
    deterministic: bool = False,
    store: Store | None = None,
) -> Tensor:
    """`attend` on tokens that are sharded contiguously over `group`: q ``[L/cp, H, d]``, k and v ``[L/cp, Hkv, d]``,
    whole intervals ``[L, 4]``.

    Queries, keys and values travel in one exchange.  Where the group's size does not divide the key/value heads, these
    are repeated first, as few times as it takes, so that every rank keeps the heads its queries read.  store: puts this
    rank's heads of all tokens into a cache.
    """
    size = group.size()
    repeats = math.lcm(k.shape[1], size) // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    tokens, width = q.shape[0], q.shape[2]
    shares = [x.shape[1] // size for x in (q, k, v)]
    parts = [x.view(tokens, size, share, width) for x, share in zip((q, k, v), shares)]
    joined = torch.cat(parts, dim=2).view(tokens, size * sum(shares), width)
    q, k, v = to_heads(joined, group).split(shares, dim=1)
    if store is not None:
        k, v = store(k, v)
    return to_tokens(attend(backend, q, k, v, intervals, scale, deterministic), group)


class IntervalAttention(MegatronModule):
    """Drop-in for `DotProductAttention`; megatron-core's `attention_mask` argument carries int32 intervals ``[L, 4]``
    of the whole row.

    The configuration's `interval_backend` names the kernel.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **later_releases: Any,
    ) -> None:
        super().__init__(config=config)
        assert not config.attention_dropout and not attention_dropout
        self.backend, self.deterministic = config.interval_backend, config.interval_deterministic
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)
        # Counted over the whole model, chunks of an interleaved pipeline included.
        self.layer_number = layer_number

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        cached: CachedRow | None = None,
        **unused: Any,
    ) -> Tensor:
        """query ``[l, 1, H, d]``, key and value ``[l, 1, Hkv, d]`` of this rank's l = L/CP tokens and tensor parallel
        heads -> ``[l, 1, H*d]``.

        Without context parallelism there may be fewer queries than keys; intervals are the queries' then.  cached:
        where keys and values are kept; the intervals count in the rows of its buffers.
        """
        q, k, v = (x[:, 0] for x in (query, key, value))
        store = None if cached is None else partial(cached.cache.store, self.layer_number, row=cached)
        if self.context_group is None:
            if store is not None:
                k, v = store(k, v)
            out = attend(self.backend, q, k, v, attention_mask, self.scale, self.deterministic)
        else:
            out = exchange_attention(
                self.backend, q, k, v, attention_mask, self.scale, self.context_group, self.deterministic, store
            )
        return out.reshape(out.shape[0], 1, -1)
