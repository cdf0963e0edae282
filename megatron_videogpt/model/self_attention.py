"""Self-attention around the interval mask: joint projection, rotary positions, and the last layer's that computes
scored rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from .cache import CachedRow
from .fused import split_rotary

Output = tuple[Tensor, "Tensor | None"]


class ScoredRows(NamedTuple):
    """The rows of a packed row of L tokens that reach the head.

    rows: int64 ``[n]``, ascending; place: int32 ``[L]``, where in them each row is, or -1; intervals: int32 ``[n, 4]``,
    theirs.
    """

    rows: Tensor
    place: Tensor
    intervals: Tensor


def scored_rows(rows: Tensor, intervals: Tensor) -> ScoredRows:
    """`ScoredRows` of row numbers int64 ``[n]`` and the intervals ``[L, 4]`` of all rows."""
    place = torch.full((len(intervals),), -1, dtype=torch.int32, device=rows.device)
    place[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    return ScoredRows(rows, place, intervals.index_select(0, rows))


class RotaryAttention(SelfAttention):
    """megatron-core's self-attention with one pass that cuts the joint projection and turns queries and keys, so that
    the joint one is not kept.

    last: of the model's last layer, which computes only the rows that it is told of.
    """

    def __init__(self, *, config: Any, last: bool = False, **kwargs: Any) -> None:
        # By name: MindSpeed, which wraps this call, looks for it there.
        super().__init__(config=config, **kwargs)
        self.last = last
        # With fewer key-value heads than tensor parallel ranks, several ranks share one and each takes its part of the
        # queries that read it.
        sharing = self.world_size // min(config.num_query_groups, self.world_size)
        self.own_queries = self.num_attention_heads_per_partition // sharing
        self.first_query = self.tp_group.rank() % sharing * self.own_queries

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        rotary_pos_emb: Tensor,
        packed_seq_params: ScoredRows | CachedRow | None = None,
        **unused: Any,
    ) -> Output:
        """hidden ``[l, 1, D]``, intervals int32 ``[L, 4]``, angles float32 ``[l, 1, 1, d]`` -> (``[l, 1, D]``, no
        bias).

        The last layer: (``[n, 1, D]`` of the n scored rows, their numbers in place of the bias, for `add_to_scored`),
        where there is a `ScoredRows`; megatron-core passes that through untouched, as it does packed sequences'
        lengths, and a cache's `CachedRow` as well, which is for all layers.
        """
        cached = packed_seq_params if isinstance(packed_seq_params, CachedRow) else None
        chosen = packed_seq_params if self.last and isinstance(packed_seq_params, ScoredRows) else None
        rows, place = (None, None) if chosen is None else (chosen.rows, chosen.place)
        joint, _ = self.get_query_key_value_tensors(hidden_states, split_qkv=False)
        cut = joint[:, 0].unflatten(-1, (-1, self.hidden_size_per_attention_head))
        query, key, value = split_rotary(cut, rotary_pos_emb[:, 0, 0], self.config.kernels, rows, place)
        if self.own_queries < query.shape[1]:
            query = query[:, self.first_query : self.first_query + self.own_queries].contiguous()
        # Attention must not keep the joint projection alive while it runs.
        del joint, cut
        intervals = attention_mask if chosen is None else chosen.intervals
        out = self.core_attention(*(x.unsqueeze(1) for x in (query, key, value)), intervals, cached=cached)
        return self.linear_proj(out)[0], rows


def add_to_scored(training: bool, fused: bool) -> Callable[[Output, Tensor, float], Tensor]:
    """For the last layer in place of megatron-core's bias, dropout and addition: adds to the residual's rows that were
    scored, and drops the others.
    """

    def add(output: Output, residual: Tensor, dropout: float) -> Tensor:
        """(``[n, 1, D]``, row numbers or None) and residual ``[L, 1, D]`` -> ``[n, 1, D]``."""
        out, rows = output
        return (residual if rows is None else residual.index_select(0, rows)) + out

    return add
