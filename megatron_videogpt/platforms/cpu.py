"""CPU over gloo: redirects the `torch.cuda` calls that megatron-core makes unconditionally to the CPU.

The same mechanism as MindSpeed's `transfer_to_npu`, with another target.  What is redirected was found by running
megatron-core 0.16.1.
"""

from __future__ import annotations

import contextlib
import functools
import platform as host
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch.utils._device import _device_constructors

from . import Platform

FACTORIES = (
    "arange as_tensor empty empty_like empty_strided full full_like linspace ones ones_like rand randint randn "
    "randn_like tensor zeros zeros_like".split()
)


class _Stream:
    """A stream on a device without streams: everything is already in order."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    wait_event = record_event = synchronize = wait_stream

    def query(self) -> bool:
        """Always finished."""
        return True


class _Event(_Stream):
    """An event that has always happened."""

    def record(self, stream: Any = None) -> None:
        """Nothing to record."""

    wait = synchronize = record


def _is_cuda(device: Any) -> bool:
    """Whether a device argument means a GPU; a bare number is what `torch.cuda.current_device` gives."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return type(device) is int or (isinstance(device, str) and device.startswith("cuda"))


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory that makes a CPU tensor where a CUDA one is asked for."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def _redirect_tensors() -> None:
    # `with torch.device("meta")`, by which transformers makes models, knows the factories by a list that torch makes at
    # the first use, of what has these names then, and meets what is redirected here under it.
    _device_constructors()
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    move, kind = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(move)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple("cpu" if _is_cuda(value) else value for value in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return move(self, *args, **kwargs)

    @functools.wraps(kind)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The distributed optimizer sorts parameters by this name.
        result = kind(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.to = to  # type: ignore[method-assign]
    torch.Tensor.type = type_  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]


def _redirect_cuda_module() -> None:
    stream = _Stream()
    names: dict[str, Any] = {
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda s: contextlib.nullcontext(),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        # Functions of their own: tables of torch's compiler refuse one object under two names with different rules, as
        # 2.7 has them for manual_seed.
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "default_generators": [torch.default_generator],
        "_lazy_call": lambda call, **kwargs: call(),
        "_lazy_init": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
    }
    for name, value in names.items():
        setattr(torch.cuda, name, value)
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, value)
    torch.cuda.nvtx.range_push = lambda *args: None
    torch.cuda.nvtx.range_pop = lambda *args: None


def _unchanged(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`torch.compile` and `torch.compiler.disable`, called and as decorators, with arguments or without."""
    return function if callable(function) else _unchanged


def _leave_uncompiled() -> None:
    """Keep the compiler out: a CPU compiles nothing, and importing torch._dynamo takes a second and 100 MB of every
    rank.

    megatron-core decorates with `torch.compile`; torch itself imports the compiler only to tell it what not to compile.
    """
    torch.compile = torch.compiler.disable = _unchanged  # type: ignore[assignment]
    for method in vars(torch.optim.Optimizer).values():
        # torch._disable_dynamo asks the function that it wraps for this attribute before it imports the compiler.
        if (wrapped := getattr(method, "__wrapped__", None)) is not None:
            wrapped.__dynamo_disable = wrapped
    step = getattr(torch.optim.Adam.step, "__wrapped__", None)
    # Marked as hooked, it was wrapped once more: an optimizer exists already, and with it the compiler.
    if step is not None and not hasattr(torch.optim.Adam.step, "hooked"):
        torch.optim.Adam.step = _with_wanted_gradients(step)  # type: ignore[method-assign]


def _with_wanted_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    """What torch wraps an optimizer's `step` in, but for the marks that it leaves for the compiler."""

    @functools.wraps(step)
    def wrapped(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return wrapped


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return host.processor() or "CPU"


def has_bf16_products() -> bool:
    """Whether this is an x86 processor with AVX512-BF16 or AMX.  Others emulate bf16, slower than float32; of Arm
    processors torch does not tell.
    """
    asked = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return any(has() for has in asked)


def activate(environment: Mapping[str, str]) -> Platform:
    """Redirect `torch.cuda` and run on the CPU; whatever the launcher says is fine."""
    _redirect_tensors()
    _redirect_cuda_module()
    _leave_uncompiled()
    return Platform(
        name="cpu",
        device=torch.device("cpu"),
        backend="gloo",
        device_name=_cpu_name(),
        memory_peak=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        reset_memory_peak=lambda: None,
        memory_total=lambda: psutil.virtual_memory().total // int(environment.get("LOCAL_WORLD_SIZE", "1")),
        # A rank that waits for a socket uses no processor.
        own_seconds=time.process_time,
        bf16=has_bf16_products(),
    )
