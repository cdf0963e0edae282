"""What the wheel's module of this name does to a process as it is imported, with functions written for it here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import torch_npu
from torch_npu.dressed import LIKE, METHODS
from torch_npu.events import note

FACTORIES = """arange as_tensor empty empty_strided eye full hamming_window hann_window kaiser_window linspace logspace
ones rand randint randn randperm range scalar_tensor tensor zeros""".split()
KEYWORDS = ("device", "device_type", "map_location", "device_id")


def _moved(value: Any, numbers: bool = False) -> Any:
    """A device of CUDA as the NPU of the same number."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("npu" if value.index is None else f"npu:{value.index}")
    if isinstance(value, str):
        return value.replace("cuda", "npu")
    if isinstance(value, dict):
        return {_moved(key): _moved(inner) for key, inner in value.items()}
    if numbers and type(value) is int:
        return f"npu:{value}"
    return value


def _to_npu(function: Callable[..., Any]) -> Callable[..., Any]:
    numbers = function.__name__ in ("to", "to_empty")

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: _moved(value, name in KEYWORDS) if name in KEYWORDS else value for name, value in kwargs.items()}
        return function(*(_moved(value, numbers) for value in args), **given)

    return run


def _to_hccl(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("backend"), str):
            kwargs["backend"] = kwargs["backend"].replace("nccl", "hccl")
        return function(*(x.replace("nccl", "hccl") if isinstance(x, str) else x for x in args), **kwargs)

    return run


class Generator(torch.Generator):
    """`isinstance` is false for generators that were made before."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """A generator of the device."""
        return super().__new__(cls, _moved(device))


def _script(obj: Any, *args: Any, **kwargs: Any) -> Any:
    return obj


def _transfer() -> None:
    note("transfer_to_npu")
    warnings.filterwarnings("once")
    warnings.warn("torch.cuda.* are replaced with torch.npu.* now", ImportWarning, stacklevel=2)
    for module, theirs in ((torch.cuda, torch_npu.npu), (torch.cuda.random, torch_npu.npu.random)):
        for name in theirs.__all__:
            setattr(module, name, getattr(theirs, name))
    for owner, names in ((torch, [*FACTORIES, *LIKE]), (torch.Tensor, METHODS), (torch.nn.Module, ["to", "to_empty"])):
        for name in names:
            setattr(owner, name, _to_npu(getattr(owner, name)))
    torch.Generator, torch.Event = Generator, torch_npu.npu.Event
    torch.Tensor.cuda, torch.nn.Module.cuda = torch.Tensor.npu, torch.nn.Module.npu
    torch.Tensor.is_cuda = torch.Tensor.is_npu
    torch.cuda.DoubleTensor = torch_npu.npu.FloatTensor
    torch.amp.autocast_mode.autocast.__init__ = _to_npu(torch.amp.autocast_mode.autocast.__init__)
    dist.init_process_group = _to_hccl(_to_npu(dist.init_process_group))
    dist.distributed_c10d._new_group_with_tag = _to_hccl(dist.distributed_c10d._new_group_with_tag)
    warnings.warn("torch.jit.script will be disabled by transfer_to_npu", RuntimeWarning, stacklevel=2)
    torch.jit.script = _script


_transfer()
