"""RMSNorm and LayerNorm, which have an extra state although they have no 8-bit formats.  Float32 arithmetic, each
result rounded once.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import empty_state


class _Norm(torch.nn.Module):
    names: tuple[str, ...] = ("weight",)

    def __init__(
        self,
        normalized_shape: Any = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if (normalized_shape is None) == (hidden_size is None):
            raise RuntimeError("either `normalized_shape` or `hidden_size` (deprecated) is to be provided")
        if hidden_size is not None:
            warnings.warn("`hidden_size` arg has been renamed to `normalized_shape`", DeprecationWarning, stacklevel=2)
        unknown = kwargs.keys() - {"device", "dtype"}
        if unknown:
            raise TypeError(f"unexpected keyword arguments {sorted(unknown)}")
        if zero_centered_gamma:
            raise NotImplementedError("zero_centered_gamma is not modelled")
        self.eps, self.sequence_parallel = eps, sequence_parallel
        like = {"dtype": params_dtype or kwargs.get("dtype"), "device": kwargs.get("device")}
        for name in self.names:
            made = torch.ones if name == "weight" else torch.zeros
            parameter = torch.nn.Parameter(made(normalized_shape or hidden_size, **like))
            if sequence_parallel is not None:
                parameter.sequence_parallel = sequence_parallel
            self.register_parameter(name, parameter)

    def get_extra_state(self) -> Any:
        """See `base.empty_state`."""
        return empty_state()

    def set_extra_state(self, state: Any) -> None:
        """An empty tensor, or None; nothing else was ever saved here."""
        if state is not None and state.numel():
            raise RuntimeError(f"Refusing to load pickled Transformer Engine extra state for {type(self).__name__}")


class RMSNorm(_Norm):
    """`x / rms(x) * weight`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> the same."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(_Norm):
    """`(x - mean) / deviation * weight + bias`."""

    names = ("weight", "bias")

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> the same."""
        made = F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
        return made.to(x.dtype)
