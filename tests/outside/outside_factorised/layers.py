"""Decoder layers that also attend words, and are modulated by the noise level of each token's frame."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_videogpt.attention import attend
from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.model.inputs import LayerInputs
from megatron_videogpt.model.layers import LayerKind, VideoGPTConfig, attention_spec
from megatron_videogpt.model.recompute import FeedForward


class CrossAttention(MegatronModule):
    """Tokens attend words.  A module of megatron-core, because a checkpoint takes the parameters of any other for whole
    ones, and these are split.
    """

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__(config)
        width, options = config.hidden_size, {"bias": False, "init_method": config.init_method, "skip_bias_add": False}
        self.backend, self.width = config.interval_backend, config.kv_channels
        self.query = ColumnParallelLinear(width, width, config=config, gather_output=False, **options)
        whole = copy.copy(config)
        whole.sequence_parallel = False
        self.key_value = ColumnParallelLinear(
            width,
            2 * width,
            config=whole,
            gather_output=False,
            disable_grad_reduce=config.sequence_parallel,
            **options,
        )
        self.out = RowParallelLinear(width, width, config=config, input_is_parallel=True, **options)

    def forward(self, hidden: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """Hidden ``[l, 1, D]`` (a part of them under sequence parallelism), text ``[T, D]``, intervals of all l tokens
        in it.
        """
        query = self.query(hidden)[0].unflatten(-1, (-1, self.width))[:, 0]
        key, value = self.key_value(text.unsqueeze(1))[0][:, 0].unflatten(-1, (-1, 2, self.width)).unbind(2)
        found = attend(self.backend, query, key, value, seen, self.width**-0.5)
        return self.out(found.flatten(1).unsqueeze(1))[0]


class FactorisedLayer(TransformerLayer):
    """Attention, cross-attention and feed-forward, the first and the last modulated."""

    def __init__(
        self, config: VideoGPTConfig, submodules: Any, layer_number: int = 1, last: bool = False, **rest: Any
    ) -> None:
        super().__init__(config, submodules, layer_number, **rest)
        self.last = last
        self.table = nn.Parameter(
            torch.empty(6, config.hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # Each rank modulates its own rows.
        self.table.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.words = CrossAttention(config)

    def forward(
        self, hidden_states: Tensor, context: Tensor | None, packed_seq_params: LayerInputs, **rest: Any
    ) -> tuple[Tensor, Any]:
        """megatron-core's arguments."""
        inputs, hidden = packed_seq_params, hidden_states
        frame, seen = inputs.side_here("frame", context), inputs.side("seen", context)
        steps = (inputs.side("modulation", context)[frame].unflatten(-1, (6, -1)) + self.table).unsqueeze(1)
        normed = self.input_layernorm(hidden) * (1 + steps[:, :, 0]) + steps[:, :, 1]
        out, rows = self.self_attention(normed, packed_seq_params=inputs, **rest)
        if rows is not None:
            hidden, steps, seen = (x.index_select(0, rows) for x in (hidden, steps, seen))
        hidden = hidden + steps[:, :, 2] * out
        hidden = hidden + self.words(self.pre_cross_attn_layernorm(hidden), inputs.side("text", context), seen)
        normed = self.pre_mlp_layernorm(hidden) * (1 + steps[:, :, 3]) + steps[:, :, 4]
        return hidden + steps[:, :, 5] * self.mlp(normed)[0], context


def _spec(config: VideoGPTConfig, mask: int, last: bool) -> ModuleSpec:
    return ModuleSpec(
        module=FactorisedLayer,
        params={"last": last},
        submodules=TransformerLayerSubmodules(
            input_layernorm=config.norm,
            self_attention=attention_spec(config, mask, last),
            pre_cross_attn_layernorm=config.norm,
            pre_mlp_layernorm=config.norm,
            mlp=FeedForward,
        ),
    )


def layer(model: ModelConfig, number: int) -> LayerKind:
    """Layers attend in space and in time by turns."""
    return LayerKind(number % 2, _spec)
