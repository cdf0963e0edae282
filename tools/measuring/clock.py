"""What measurements are taken with: seconds, memory, turns of what is compared."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Name, Taken = TypeVar("Name"), TypeVar("Taken")


def in_turns(ways: Mapping[Name, Callable[[], Taken]], repeat: int) -> Iterator[tuple[Name, Taken]]:
    """Run every way `repeat` times, one after the other, so that a machine that drifts slows all of them alike: name
    and result of each run.
    """
    for _ in range(repeat):
        for name, run in ways.items():
            yield name, run()


def seconds(call: Callable[[], Any], device: str, count: int = 1) -> float:
    """Mean seconds of a call over `count` calls in a row, on a GPU or NPU by its own clock."""
    if device != "cpu":
        import torch

        start, stop = (torch.get_device_module(device).Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / count
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def attempt(work: Callable[[], None]) -> str:
    """Run it; returns what went wrong, or an empty string.  A backend that cannot run here is a row of the table, not
    the end of it.
    """
    try:
        work()
    # Compilers and kernel packages raise whatever they like.
    except Exception as error:  # noqa: BLE001
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return one_line(error)
    return ""


def one_line(error: Exception) -> str:
    """What went wrong, short enough for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else 'no message'}"


def resident() -> int:
    """Bytes of memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    """Freed memory back to the system, so that what a measurement takes shows as growth (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory(call: Callable[[], Any], device: str) -> float:
    """Most MiB that a call held beyond what was there before; on a CPU sampled each millisecond, nan where the system
    does not tell.
    """
    if device != "cpu":
        import torch

        module = torch.get_device_module(device)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        call()
        module.synchronize()
        return (module.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/statm").exists():
        call()
        return float("nan")
    _give_back()
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(0, max(most, resident()) - before) / 2**20


def process_memory(field: str) -> int:
    """Bytes of this process's resident set: now (``VmRSS``) or at most so far (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def highest_memory(call: Callable[[], Any]) -> float:
    """MiB that a call takes at most, above what the process holds before it: by the kernel's own high-water mark
    (Linux with glibc), which misses nothing and costs no time.
    """
    glibc = ctypes.CDLL(None)
    # From the first call on, large freed blocks go back to the system (M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of
    # mallopt(3)): a resident set is what is alive.  Those that were freed before lie inside the heap.
    for parameter, value in ((-1, 65536), (-2, 0), (-3, 65536)):
        glibc.mallopt(parameter, value)
    glibc.malloc_trim(0)
    before = process_memory("VmRSS")
    # Starts the kernel's high-water mark afresh.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    call()
    return (process_memory("VmHWM") - before) / 2**20
