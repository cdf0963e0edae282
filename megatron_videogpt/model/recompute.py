"""Which activations the backward pass computes again, and the feed-forward that can."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor

from ..platforms import compat
from .fused import swiglu


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


class GatedMLP(MLP):
    """megatron-core's SwiGLU feed-forward with recomputation.

    The configuration's `recompute_activation` drops the product that enters the second linear layer; in the first
    `recompute_mlp` layers of a chunk only the input is kept.
    """

    def __init__(self, config: Any, **unused: Any) -> None:
        submodules = MLPSubmodules(linear_fc1=config.column_linear, linear_fc2=config.row_linear)
        super().__init__(config=config, submodules=submodules, ffn_hidden_size=config.ffn_hidden_size)
        self.whole = False

    def set_layer_number(self, number: int) -> None:
        """megatron-core tells each layer its number in the whole model, from 1."""
        self.whole = number - self.config.first_layer <= self.config.recompute_mlp

    def forward(self, hidden: Tensor, per_token_scale: Tensor | None = None, **unused: Any) -> tuple[Tensor, None]:
        """``[l, 1, D]`` -> the same shape, and no bias."""
        assert per_token_scale is None
        if self.whole and torch.is_grad_enabled():
            return tensor_parallel.checkpoint(self._plain, False, hidden), None
        if not self.config.recompute_activation or not torch.is_grad_enabled():
            return self._plain(hidden), None
        inner, _ = self.linear_fc1(hidden)
        product = CheckpointWithoutOutput()
        out, _ = self.linear_fc2(product.checkpoint(self._activation, inner))
        product.discard_output_and_register_recompute(out)
        return out, None

    def _activation(self, inner: Tensor) -> Tensor:
        return swiglu(inner, self.config.kernels)

    def _plain(self, hidden: Tensor) -> Tensor:
        inner, _ = self.linear_fc1(hidden)
        return self.linear_fc2(self._activation(inner))[0]
