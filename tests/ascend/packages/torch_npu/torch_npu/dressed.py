"""The CPU dressed as "npu": whatever takes a device takes that one, and gives CPU tensors.

A tensor that is made on "npu" before `set_device` would lie on device 0, whoever the process is: RuntimeError here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

from . import npu

LIKE = "empty_like full_like ones_like rand_like randint_like randn_like zeros_like load".split()
METHODS = "to new_empty new_empty_strided new_full new_ones new_tensor new_zeros".split()


def _is_npu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "npu"
    return isinstance(value, str) and value.split(":")[0] == "npu"


def plain(value: Any) -> Any:
    """A device or a table of devices as the CPU knows them; anything else as it is."""
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if not _is_npu(value):
        return value
    if npu.chosen is None:
        raise RuntimeError("something is made on npu before torch.npu.set_device")
    return "cpu"


def _undressed(function: Callable[..., Any], others: tuple[str, ...] = ("device", "map_location")) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # A host without a device has no pinned memory.
        kwargs.pop("pin_memory", None)
        for name in others:
            if name in kwargs:
                kwargs[name] = plain(kwargs[name])
        return function(*(plain(x) if _is_npu(x) else x for x in args), **kwargs)

    return run


class Generator(torch.Generator):
    """Takes the device too."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """A generator of the CPU."""
        return torch._C.Generator.__new__(cls, plain(device))


def dress() -> None:
    """Once per process."""
    # `with torch.device("meta")` knows the factories by a list of what has their names when it is first asked for.
    made = {function.__name__: function for function in _device_constructors()}
    for name in [*(name for name, function in made.items() if getattr(torch, name, None) is function), *LIKE]:
        setattr(torch, name, _undressed(getattr(torch, name)))
    for name in METHODS:
        setattr(torch.Tensor, name, _undressed(getattr(torch.Tensor, name)))
    kind = torch.Tensor.type

    @functools.wraps(kind)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = kind(self, *args, **kwargs)
        return result.replace("torch.", "torch.npu.", 1) if isinstance(result, str) else result

    torch.Tensor.type = type_
    torch.Tensor.pin_memory = lambda self, device=None: self
    torch.Tensor.npu = lambda self, *args, **kwargs: self
    torch.Tensor.is_npu = property(lambda self: False)
    torch.nn.Module.npu = lambda self, *args, **kwargs: self
    torch.Generator = Generator
    # The name of the device is registered, and hooks of it in C++ are not.
    torch._C._get_accelerator = lambda check=None: torch.device("cpu")
