"""Which activations the backward pass computes again, and the feed-forward that can."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor

from ..platforms import compat
from .dropout import dropout, sites, with_bias
from .fused import activation
from .inputs import LayerInputs


def megatron_options(policy: str, count: int) -> dict[str, Any]:
    """megatron-core's options for a chunk of which `count` leading layers recompute; its `layernorm` module drops the
    outputs of the norms.
    """
    if policy == "full" and count:
        return {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": count}
    if policy in ("selective", "mlp"):
        compat.allow_dropping_outputs()
        return {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]}
    return {}


class FeedForward(MLP):
    """megatron-core's feed-forward with its biases, recomputation and dropout.

    The configuration's `activation` names what stands between its two linear layers; `recompute_activation` drops the
    product that enters the second one; in the first `recompute_mlp` layers of a chunk only the input is kept.

    identity: of the tokens that come next, None where nothing is dropped.  megatron-core passes a feed-forward nothing
    but hidden states, so that `hand_identity` leaves it here as the layer's pass begins.
    """

    def __init__(self, config: Any, **unused: Any) -> None:
        submodules = MLPSubmodules(linear_fc1=config.column_linear, linear_fc2=config.row_linear)
        super().__init__(config=config, submodules=submodules, ffn_hidden_size=config.ffn_hidden_size)
        self.whole, self.site = False, 0
        self.identity: Tensor | None = None

    def set_layer_number(self, number: int) -> None:
        """megatron-core tells each layer its number in the whole model, from 1."""
        self.whole = number - self.config.first_layer <= self.config.recompute_mlp
        _, self.site = sites(number)

    def forward(self, hidden: Tensor, per_token_scale: Tensor | None = None, **unused: Any) -> tuple[Tensor, None]:
        """``[l, 1, D]`` -> the same shape, and no bias: it is in there."""
        assert per_token_scale is None
        identity, self.identity = self.identity, None
        return dropout(self._forward(hidden), identity, self.site, self.config.dropout), None

    def _forward(self, hidden: Tensor) -> Tensor:
        if self.whole and torch.is_grad_enabled():
            return tensor_parallel.checkpoint(self._plain, False, hidden)
        if not self.config.recompute_activation or not torch.is_grad_enabled():
            return self._plain(hidden)
        product = CheckpointWithoutOutput()
        out, bias = self.linear_fc2(product.checkpoint(self._activation, with_bias(self.linear_fc1(hidden))))
        product.discard_output_and_register_recompute(out)
        return with_bias((out, bias))

    def _activation(self, inner: Tensor) -> Tensor:
        return activation(inner, self.config.activation, self.config.kernels)

    def _plain(self, hidden: Tensor) -> Tensor:
        return with_bias(self.linear_fc2(self._activation(with_bias(self.linear_fc1(hidden)))))


def hand_identity(layer: Any, positional: tuple[Any, ...], named: dict[str, Any], scored_only: bool) -> None:
    """A hook before a layer's pass, recomputation included: its feed-forward finds out which tokens it will get.

    scored_only: whether this is the layer that goes on with scored rows behind its attention.
    """
    inputs: LayerInputs = named["packed_seq_params"]
    chosen = inputs.scored if scored_only else None
    layer.mlp.identity = inputs.identity_of(None if chosen is None else chosen.rows)
