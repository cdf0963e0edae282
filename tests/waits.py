"""Watches that work on a CPU for what a device would not like: for whatever makes the host wait (it looks for what
reads values, not for time), and for float64, which Ascend's kernels and collectives refuse.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TO_HOST = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")
"""Methods of a tensor that give its values to Python."""
DATA_DEPENDENT = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique2",
    "repeat_interleave.Tensor",
    "equal",
    "is_nonzero",
)
"""Operations whose result's shape or type depends on values."""

TORCH = str(Path(torch.__file__).parent)
PLATFORM = str(Path(__file__).resolve().parents[1] / "megatron_videogpt" / "platforms" / "cpu.py")
"""Where the CPU platform stands in for functions of torch."""


def _place() -> str:
    """The innermost line outside of torch, what stands in for it, and this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((TORCH, PLATFORM, __file__, "<")):
        frame = frame.f_back
    return "/".join(Path(frame.f_code.co_filename).parts[-2:]) + f":{frame.f_lineno}"


class Waits(TorchDispatchMode):
    """Records every operation whose answer the host would wait for on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        # A mask as an index has as many results as it has ones.
        indices = args[1] if name.startswith(("index.", "index_put")) else []
        masked = any(isinstance(x, Tensor) and x.dtype is torch.bool for x in indices)
        if masked or name.startswith(DATA_DEPENDENT):
            self.found.append(f"{name} {_place()}")
        return func(*args, **(kwargs or {}))


class Doubles(TorchDispatchMode):
    """Records every operation, collectives among them, that takes or gives a float64 tensor; for the thread that enters
    it.
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.allowed, self.found = allowed, list[str]()
        self.collectives = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.collectives += func.namespace == "c10d"
        if any(
            isinstance(x, Tensor) and x.dtype in (torch.float64, torch.complex128)
            for x in tree_leaves((args, kwargs, result))
        ):
            place = _place()
            if not place.startswith(self.allowed):
                self.found.append(f"{func.namespace}.{func.__name__} {place}")
        return result


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """What inside would wait for a device, by name."""
    with Waits() as mode, pytest.MonkeyPatch.context() as patch:
        for name in TO_HOST:
            real = getattr(Tensor, name)

            def recorded(
                self: Tensor, *args: Any, _name: str = name, _real: Callable[..., Any] = real, **kwargs: Any
            ) -> Any:
                mode.found.append(f"Tensor.{_name} {_place()}")
                return _real(self, *args, **kwargs)

            patch.setattr(Tensor, name, recorded)
        real_to = Tensor.to

        def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # A copy from another device, of which a CPU knows none, unless it runs in the background.
            if any(isinstance(x, (torch.device, str)) for x in (*args, kwargs.get("device"))) and not kwargs.get(
                "non_blocking"
            ):
                mode.found.append(f"Tensor.to(device) {_place()}")
            return real_to(self, *args, **kwargs)

        patch.setattr(Tensor, "to", to)
        real_tensor = torch.tensor

        def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
            # A copy from memory that is not pinned; without a device the value stays on the CPU.
            if kwargs.get("device") is not None:
                mode.found.append(f"torch.tensor(device=...) {_place()}")
            return real_tensor(data, *args, **kwargs)

        patch.setattr(torch, "tensor", tensor)
        yield mode.found
