"""Communication that no computation hides, from a profile of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def exposed_seconds(communication: list[tuple[float, float]], computation: list[tuple[float, float]]) -> float:
    """Time that is covered by communication and by no computation, from (start, end) intervals of each, which may
    overlap.
    """
    marks = [
        (t, kind, change)
        for kind, spans in enumerate((communication, computation))
        for a, b in spans
        for t, change in ((a, 1), (b, -1))
    ]
    open_spans, total, before = [0, 0], 0.0, 0.0
    for t, kind, change in sorted(marks):
        if open_spans[0] and not open_spans[1]:
            total += t - before
        open_spans[kind] += change
        before = t
    return total


def is_communication(name: str) -> bool:
    """Whether a profiler event is a collective operation's own work."""
    return name.lower().startswith(("nccl", "hccl", "gloo:", "c10d::"))


def profiled(step: Callable[[], None], platform: Any) -> float:
    """Seconds of one step in which this rank communicates and computes nothing."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_device = platform.name == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU], acc_events=True) as found:
        step()
        torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if on_device else torch.autograd.DeviceType.CPU
    spans: tuple[list, list] = [], []
    for event in found.events():
        # On a CPU the ranges of autograd's nodes and of megatron-core span what they wait for.
        wanted = is_communication(event.name) or on_device or event.name.startswith("aten::")
        if wanted and event.device_type == kind and event.time_range.end > event.time_range.start:
            spans[0 if is_communication(event.name) else 1].append(
                (event.time_range.start / 1e6, event.time_range.end / 1e6)
            )
    return exposed_seconds(*spans)
