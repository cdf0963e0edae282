"""megatron-core's core attention: the mask as intervals instead of a matrix, keys in the mask's order, and context
parallelism over heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..attention import attend
from .cache import CachedRow
from .inputs import OrderedMask

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


class _Permute(torch.autograd.Function):
    """Rows in another order; its gradient, unlike that of index_select, adds nothing up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Row j of the result is row ``order[j]``."""
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Every row of the gradient goes back to its place."""
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grads[0], inverse, order), None, None


def attend_in_order(
    backend: str, q: Tensor, k: Tensor, v: Tensor, mask: OrderedMask, scale: float, deterministic: bool = False
) -> Tensor:
    """`attend` with keys, and queries where they are all tokens, put into the mask's order, and the output back: rows
    of a tile see the same keys there.

    q ``[Lq, H, d]``, k and v ``[Lk, Hkv, d]``, all as stored -> ``[Lq, H, d]``.
    """
    order, inverse = mask.order, mask.inverse
    if mask.queries is not None and mask.back is not None:
        q = q.index_select(0, mask.queries)
        placed = replace(mask, queries=None)
        return attend_in_order(backend, q, k, v, placed, scale, deterministic).index_select(0, mask.back)
    if order is None:
        return attend(backend, q, k, v, mask.intervals, scale, deterministic, groups=mask.groups, plan=mask.plan)
    if inverse is None:
        k, v = k.index_select(0, order), v.index_select(0, order)
    else:
        k, v = _Permute.apply(k, order, inverse), _Permute.apply(v, order, inverse)
    if not mask.all_queries:
        return attend(backend, q, k, v, mask.intervals, scale, deterministic, plan=mask.plan)
    q = _Permute.apply(q, order, inverse)
    out = attend(backend, q, k, v, mask.intervals, scale, deterministic, groups=mask.groups, plan=mask.plan)
    return _Permute.apply(out, inverse, order)


def exchange_attention(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OrderedMask,
    scale: float,
    group: Any,
    deterministic: bool = False,
    store: Store | None = None,
) -> Tensor:
    """`attend_in_order` on tokens that are sharded contiguously over `group`: q ``[L/cp, H, d]``, k and v ``[L/cp, Hkv,
    d]``, the mask of all L tokens.  Its order needs no exchange of its own: every rank holds all tokens of its heads.

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
    return to_tokens(attend_in_order(backend, q, k, v, mask, scale, deterministic), group)


class IntervalAttention(MegatronModule):
    """Stands where megatron-core has its `DotProductAttention`.  The configuration's `interval_backend` names the
    kernel.
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
        mask: OrderedMask,
        cached: CachedRow | None = None,
    ) -> Tensor:
        """query ``[l, 1, H, d]``, key and value ``[l, 1, Hkv, d]`` of this rank's l = L/CP tokens and tensor parallel
        heads -> ``[l, 1, H*d]``.

        Without context parallelism there may be fewer queries than keys (`OrderedMask.of_rows`).  cached: where keys
        and values are kept; the mask counts in the rows of its buffers.
        """
        q, k, v = (x.squeeze(1) for x in (query, key, value))
        store = None if cached is None else partial(cached.cache.store, self.layer_number, row=cached)
        if self.context_group is None:
            if store is not None:
                k, v = store(k, v)
            out = attend_in_order(self.backend, q, k, v, mask, self.scale, self.deterministic)
        else:
            out = exchange_attention(
                self.backend, q, k, v, mask, self.scale, self.context_group, self.deterministic, store
            )
        return out.reshape(out.shape[0], 1, -1)
