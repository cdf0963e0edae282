"""`torch.npu`: as much of the wheel's module as programs for GPUs have a name for, with its way of starting lazily.

`__all__` has what the wheel's has of these, no `_lazy_call`, `_lazy_init` and `default_generators`: it is what
`transfer_to_npu` puts into `torch.cuda`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from . import random as random
from .events import note

__all__ = """
is_initialized init synchronize device_count set_device current_device get_device_name get_device_properties
get_device_capability mem_get_info is_available device stream set_stream current_stream default_stream manual_seed
manual_seed_all seed initial_seed empty_cache memory_stats reset_peak_memory_stats memory_allocated
max_memory_allocated memory_reserved max_memory_reserved Stream Event set_compile_mode get_rng_state set_rng_state
is_bf16_supported get_amp_supported_dtype FloatTensor HalfTensor BFloat16Tensor DoubleTensor IntTensor LongTensor
config matmul conv is_current_stream_capturing
""".split()

GIB = 2**30
chosen: int | None = None
"""The device of `set_device`."""
default_generators: tuple[torch.Generator, ...] = ()
"""One a device, from the first use on."""

FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
manual_seed, manual_seed_all, seed = random.manual_seed, random.manual_seed_all, random.seed
initial_seed, get_rng_state, set_rng_state = random.initial_seed, random.get_rng_state, random.set_rng_state
DoubleTensor, IntTensor, LongTensor = torch.DoubleTensor, torch.IntTensor, torch.LongTensor


def device_count() -> int:
    """Of those that this process may see, numbered from 0."""
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return int(os.environ.get("STAND_IN_NPUS", "8")) if visible is None else len(visible.split(","))


def is_available() -> bool:
    """Whether there is one."""
    return device_count() > 0


def _number(device: Any) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


def set_device(device: Any) -> None:
    """RuntimeError for one that is not there, as the device's own."""
    global chosen
    index = _number(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"SetPrecisionMode:build/CMakeFiles: invalid device ID {index}, error code is 107001")
    chosen = index
    note(f"set_device {index}")


def current_device() -> int:
    """0 before `set_device`."""
    return chosen or 0


def is_initialized() -> bool:
    """Whether something has used a device."""
    return bool(default_generators)


def init() -> None:
    """Start the device."""
    global default_generators
    if not default_generators:
        default_generators = (torch.default_generator,) * device_count()


def _lazy_init() -> None:
    init()


def _lazy_call(call: Callable[[], Any], **unused: Any) -> None:
    init()
    call()


class device:  # noqa: N801
    """A device for a while; all are one CPU."""

    def __init__(self, device: Any) -> None:
        self.index = _number(device)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        return None


def get_device_name(device: Any = None) -> str:
    """As the driver has it."""
    return f"{os.environ.get('STAND_IN_SERIES', 'Ascend910B')}2"


def get_device_properties(device: Any = None) -> Any:
    """name, total_memory."""
    return SimpleNamespace(name=get_device_name(device), total_memory=64 * GIB)


def get_device_capability(device: Any = None) -> None:
    """CANN has no such thing."""


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, all) bytes."""
    return 60 * GIB, 64 * GIB


def memory_stats(device: Any = None) -> dict[str, int]:
    """Nothing is counted."""
    return {}


def memory_allocated(device: Any = None) -> int:
    """0: nothing is counted."""
    return 0


max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated


def synchronize(device: Any = None) -> None:
    """Everything is done already."""


reset_peak_memory_stats = synchronize


def empty_cache() -> None:
    """There is none."""


def is_current_stream_capturing() -> bool:
    """Never."""
    return False


def is_bf16_supported() -> bool:
    """Not on the older training series."""
    return os.environ.get("STAND_IN_SERIES") != "Ascend910A"


def get_amp_supported_dtype() -> list[torch.dtype]:
    """For autocast."""
    return [torch.float16, torch.bfloat16, torch.float32]


class Stream:
    """A queue of work that is done at once."""

    def __init__(self, device: Any = None, *args: Any, **kwargs: Any) -> None:
        self.npu_stream = 0

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    wait_event = wait_stream

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Event | None = None) -> Event:
        """An event of now."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Always finished."""
        return True


class Event:
    """A moment of the host's clock."""

    def __init__(self, enable_timing: bool = False, **unused: Any) -> None:
        self.timing, self.at = enable_timing, 0.0

    def record(self, stream: Any = None) -> None:
        """Now."""
        self.at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Always over."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds; RuntimeError without `enable_timing`, as on a device."""
        if not (self.timing and end.timing):
            raise RuntimeError("an event without enable_timing has no time")
        return 1e3 * (end.at - self.at)


_stream = Stream()


def current_stream(device: Any = None) -> Stream:
    """There is one."""
    return _stream


default_stream = current_stream


def set_stream(stream: Any) -> None:
    """There is one."""


@contextlib.contextmanager
def stream(stream: Any) -> Any:
    """There is one."""
    yield


def set_compile_mode(jit_compile: bool = False) -> None:
    """Whether operators are compiled for every shape."""
    note(f"set_compile_mode jit_compile={jit_compile}")


class _Noted:
    """An object whose attributes are set to change the device's options."""

    def __init__(self, name: str, **values: Any) -> None:
        self.__dict__.update(_name=name, **values)

    def __setattr__(self, name: str, value: Any) -> None:
        note(f"{self._name}.{name}={value}")
        self.__dict__[name] = value


config = _Noted("config", allow_internal_format=True)
matmul = _Noted("matmul", allow_hf32=False)
conv = _Noted("conv", allow_hf32=True)


def get_cann_version(module: str = "CANN") -> str:
    """Of what was sourced."""
    return os.environ.get("STAND_IN_CANN", "9.0.0")


memory = SimpleNamespace()
"""This release keeps no history of allocations."""
utils = SimpleNamespace(is_support_inf_nan=is_bf16_supported, get_cann_version=get_cann_version)
