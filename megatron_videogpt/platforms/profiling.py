"""Profilers of the devices: torch.profiler, or a vendor's with the same names, and records of allocations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HISTORY = 200_000
"""Allocations and frees that a record keeps, the newest."""


@dataclass(frozen=True)
class Profiling:
    """profile, schedule: as of torch.profiler; activities: what there is to trace; time, memory: columns that a table
    is sorted by; record: keep a history of allocations from now on; dump: write it to a file and end it (both None
    where a device keeps none: there the profiler itself counts allocations).
    """

    profile: Callable[..., Any]
    schedule: Callable[..., Any]
    activities: tuple[Any, ...]
    time: str
    memory: str
    record: Callable[[], None] | None = None
    dump: Callable[[Path], None] | None = None


def of_cpu() -> Profiling:
    """torch.profiler."""
    from torch.profiler import ProfilerActivity, profile, schedule

    return Profiling(profile, schedule, (ProfilerActivity.CPU,), "self_cpu_time_total", "self_cpu_memory_usage")


def of_cuda() -> Profiling:
    """torch.profiler, and the caching allocator's history, a file for pytorch.org/memory_viz."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    record, dump = _history(torch.cuda.memory)
    return Profiling(profile, schedule, activities, "self_device_time_total", "self_device_memory_usage", record, dump)


def of_npu() -> Profiling:
    """torch_npu's profiler, and its allocator's history where this release keeps one.  Not run yet."""
    import torch_npu

    module = torch_npu.profiler
    activities = (module.ProfilerActivity.CPU, module.ProfilerActivity.NPU)
    record, dump = _history(torch_npu.npu.memory)
    return Profiling(
        module.profile, module.schedule, activities, "self_npu_time_total", "self_npu_memory_usage", record, dump
    )


def _history(allocator: Any) -> tuple[Callable[[], None] | None, Callable[[Path], None] | None]:
    if not hasattr(allocator, "_record_memory_history"):
        return None, None

    def dump(path: Path) -> None:
        allocator._dump_snapshot(str(path))
        allocator._record_memory_history(enabled=None)

    return lambda: allocator._record_memory_history(max_entries=HISTORY), dump
