"""Self-attention around the interval mask: joint projection, rotary positions, and the last layer's that computes
scored rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from .dropout import dropout, sites, with_bias
from .fused import split_rotary
from .inputs import LayerInputs

Output = tuple[Tensor, "Tensor | None"]


class RotaryAttention(SelfAttention):
    """megatron-core's self-attention with one pass that cuts the joint projection and turns queries and keys, so that
    the joint one is not kept.

    mask: number of the row's mask that it goes by; last: of the model's last layer, which computes only the rows that
    it is told of.
    """

    def __init__(self, *, config: Any, mask: int = 0, last: bool = False, **kwargs: Any) -> None:
        # By name: MindSpeed, which wraps this call, looks for it there.
        super().__init__(config=config, **kwargs)
        self.mask, self.last = mask, last
        # With fewer key-value heads than tensor parallel ranks, several ranks share one and each takes its part of the
        # queries that read it.
        sharing = self.world_size // min(config.num_query_groups, self.world_size)
        self.own_queries = self.num_attention_heads_per_partition // sharing
        self.first_query = self.tp_group.rank() % sharing * self.own_queries

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor | None,
        packed_seq_params: LayerInputs,
        **unused: Any,
    ) -> Output:
        """hidden ``[l, 1, D]``, angles float32 ``[l, 1, 1, d]``, None where positions are not rotary -> (``[l, 1, D]``,
        no bias: it is in there, and dropout is done).

        The last layer: (``[n, 1, D]`` of the n scored rows, their numbers in place of the bias, for `add_to_scored`),
        where the pass says which.
        """
        inputs, mask = packed_seq_params, packed_seq_params.masks[self.mask]
        chosen = inputs.scored if self.last else None
        rows, place = (None, None) if chosen is None else (chosen.rows, chosen.place)
        joint, _ = self.get_query_key_value_tensors(hidden_states, split_qkv=False)
        cut = joint.squeeze(1).unflatten(-1, (-1, self.hidden_size_per_attention_head))
        turns = None if rotary_pos_emb is None else rotary_pos_emb[:, 0, 0]
        query, key, value = split_rotary(cut, turns, self.config.kernels, rows, place)
        if self.own_queries < query.shape[1]:
            query = query[:, self.first_query : self.first_query + self.own_queries].contiguous()
        # Attention must not keep the joint projection alive while it runs.
        del joint, cut
        mask = mask if chosen is None else mask.of_rows(chosen.intervals)
        out = self.core_attention(
            *(x.unsqueeze(1) for x in (query, key, value)), mask, cached=inputs.cached_by(self.mask)
        )
        site, _ = sites(self.layer_number)
        out = with_bias(self.linear_proj(out))
        return dropout(out, inputs.identity_of(rows), site, self.config.dropout), rows


def add_to_scored(training: bool, fused: bool) -> Callable[[Output, Tensor, float], Tensor]:
    """For the last layer in place of megatron-core's bias, dropout and addition: adds to the residual's rows that were
    scored, and drops the others.
    """

    def add(output: Output, residual: Tensor, dropout: float) -> Tensor:
        """(``[n, 1, D]``, row numbers or None) and residual ``[L, 1, D]`` -> ``[n, 1, D]``."""
        out, rows = output
        return (residual if rows is None else residual.index_select(0, rows)) + out

    return add
