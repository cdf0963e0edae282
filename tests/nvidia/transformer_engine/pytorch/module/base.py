"""What the modules share: parameters with start values, a tensor parallel group, an extra state."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_dummies: dict[tuple[Any, ...], Tensor] = {}


def get_dummy_wgrad(shape: list, dtype: torch.dtype, zero: bool = False) -> Tensor:
    """One tensor for all gradients of a shape that nobody reads; full of numbers that somebody would notice."""
    key = (*shape, dtype)
    if key not in _dummies:
        _dummies[key] = torch.full(tuple(shape), float("nan"), dtype=dtype)
    return (_dummies[key].fill_(0) if zero else _dummies[key]).detach()


def empty_state() -> Tensor | io.BytesIO:
    """The extra state of a module without 8-bit formats: an empty tensor; a pickled None in releases of 2024, which
    STAND_IN_EXTRA_STATE=pickled asks for.
    """
    if os.environ.get("STAND_IN_EXTRA_STATE") != "pickled":
        return torch.empty(0, dtype=torch.uint8)
    pickled = io.BytesIO()
    torch.save(None, pickled)
    return pickled


class TransformerEngineBaseModule(torch.nn.Module):
    """Base of `Linear`."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.tp_group: Any = None
        self.tp_size = 1
        self.starts: dict[str, tuple[Callable[[Tensor], Any], Any]] = {}

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        """The group over which the weights are split."""
        self.tp_group = tp_group

    def register_parameter(
        self, name: str, param: Any, init_fn: Any = None, get_rng_state_tracker: Any = None, **rest: Any
    ) -> None:
        """With its start value, by default a normal distribution."""
        super().register_parameter(name, param)
        self.starts[name] = (init_fn or (lambda x: torch.nn.init.normal_(x, std=0.023)), get_rng_state_tracker)

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Start values, unless they are to come later."""
        if defer_init:
            return
        for name, parameter in self.named_parameters(recurse=False):
            start, tracker = self.starts[name]
            if tracker is None:
                start(parameter)
                continue
            with tracker().fork():
                start(parameter)

    def get_extra_state(self) -> Any:
        """See `empty_state`."""
        return empty_state()

    def set_extra_state(self, state: Any) -> None:
        """An empty one of any release; others are pickles, which are refused."""
        if state is None or isinstance(state, io.BytesIO):
            return
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.numel():
            raise RuntimeError(f"Refusing to load pickled Transformer Engine extra state for {type(self).__name__}")


def mark(tensor: Tensor, is_parallel: bool, dim: int, stride: int) -> None:
    """Attributes of a parameter that tensor parallelism splits."""
    names = ("tensor_model_parallel", "partition_dim", "partition_stride")
    assert not any(hasattr(tensor, name) for name in names)
    for name, value in zip(names, (is_parallel, dim, stride)):
        setattr(tensor, name, value)
