"""Layers that attend in space, then to prompt frames, then in time, then to a text (Ca2-VDM, arXiv 2411.16375, after
Open-Sora 1.0's STDiT), modulated by the timestep of each token's frame (adaLN-single).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from .factorised import (
    FRAME,
    IS_PROMPT,
    MERGE_BIAS,
    MERGE_WEIGHT,
    MODULATION,
    PLACE,
    PLAIN,
    PROMPT,
    SEEN,
    SPATIAL,
    TEMPORAL,
    TEXT,
    Pieces,
)
from .inputs import LayerInputs
from .layers import LayerKind, VideoGPTConfig, attention_spec
from .patches import sine_table
from .per_frame import gated, modulate
from .recompute import FeedForward
from .text_attention import TextAttention


class FactorisedLayer(TransformerLayer):
    """One layer; pieces: what it has; last: whether it goes on with the row's scored tokens behind attention in time.

    Only attention in space and the feed-forward have a norm, without weights, and modulation before them; the other
    attentions read the residual stream as it is, and those to the prompt and in time are gated as the first one is.
    """

    temporal: Tensor

    def __init__(
        self,
        config: VideoGPTConfig,
        submodules: Any,
        layer_number: int = 1,
        pieces: Pieces = PLAIN,
        last: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(config, submodules, layer_number, **rest)
        self.pieces, self.eps = pieces, config.layernorm_epsilon
        like = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.table = nn.Parameter(torch.empty(6, config.hidden_size, **like))
        # Each rank sees its own rows.
        self.table.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

        def attention(mask: int, ends: bool) -> Any:
            spec = attention_spec(config, mask, ends)
            return build_module(spec, config=config, layer_number=self.layer_number, pg_collection=self.pg_collection)

        self.prompt_attention = attention(PROMPT, False) if pieces.prompt else None
        self.temporal_attention = attention(TEMPORAL, last)
        self.text_attention = TextAttention(config) if pieces.text else None
        if pieces.places:
            places = torch.arange(pieces.places, dtype=torch.float32) / pieces.time_scale
            table = sine_table(places, config.hidden_size).to(like["device"])
            self.register_buffer("temporal", table, persistent=False)

    def forward(
        self, hidden_states: Tensor, context: Tensor | None, packed_seq_params: LayerInputs, **rest: Any
    ) -> tuple[Tensor, Any]:
        """hidden ``[l, 1, D]`` -> (the same shape, or ``[n, 1, D]`` of the scored tokens, the context)."""
        inputs, x = packed_seq_params, hidden_states.squeeze(1)
        frame = inputs.side_here(FRAME, context)
        steps = inputs.side(MODULATION, context).unflatten(-1, (6, -1)) + self.table
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = steps.to(x.dtype).unbind(1)

        def attended(attention: Any, given: Tensor) -> tuple[Tensor, Tensor | None]:
            out, rows = attention(given.unsqueeze(1), packed_seq_params=inputs, **rest)
            return out.squeeze(1), rows

        out, _ = attended(self.self_attention, modulate(x, shift, scale, frame, self.eps))
        x = gated(x, out, gate, frame)
        if self.prompt_attention is not None:
            x = gated(x, attended(self.prompt_attention, x)[0], gate, frame)
        out, rows = attended(self.temporal_attention, self._in_time(x, frame, inputs, context))
        seen = inputs.side(SEEN, context) if self.text_attention is not None else None
        if rows is not None:
            x, frame = x.index_select(0, rows), frame.index_select(0, rows)
            seen = None if seen is None else seen.index_select(0, rows)
        x = gated(x, out, gate, frame)
        if self.text_attention is not None:
            plan = inputs.plan_of_side(SEEN, rows is not None)
            x = x + self.text_attention(x.unsqueeze(1), inputs.side(TEXT, context), seen, plan).squeeze(1)
        out, _ = self.mlp(modulate(x, shift_mlp, scale_mlp, frame, self.eps).unsqueeze(1))
        return gated(x, out.squeeze(1), gate_mlp, frame).unsqueeze(1), context

    def _in_time(self, x: Tensor, frame: Tensor, inputs: LayerInputs, context: Tensor | None) -> Tensor:
        """What attention in time gets of the residual stream ``[l, D]``; nothing of it stays there."""
        if self.pieces.places:
            place = inputs.side(PLACE, context).index_select(0, frame)
            x = x + self.temporal.index_select(0, place).to(x.dtype)
        if not self.pieces.mask_channel:
            return x
        given = inputs.side(IS_PROMPT, context).index_select(0, frame)
        merge = [inputs.side(name, context).to(x.dtype) for name in (MERGE_WEIGHT, MERGE_BIAS)]
        return F.linear(torch.cat([x, given[:, None].to(x.dtype)], dim=1), *merge)


def _spec(config: VideoGPTConfig, mask: int, last: bool, pieces: Pieces) -> ModuleSpec:
    return ModuleSpec(
        module=FactorisedLayer,
        params={"pieces": pieces, "last": last},
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=attention_spec(config, SPATIAL, False),
            pre_mlp_layernorm=IdentityOp,
            mlp=FeedForward,
        ),
    )


def factorised_kind(pieces: Pieces) -> LayerKind:
    """A layer of these pieces; the mask that scored tokens go by is that of attention in time."""
    return LayerKind(TEMPORAL, partial(_spec, pieces=pieces))
