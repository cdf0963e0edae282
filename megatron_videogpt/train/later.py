"""Numbers that a device has not computed yet, read without holding it up."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Mark:
    """This point in a device's queue of work: something to wait for, and to measure from.

    A CPU works at once, so there the point is now.
    """

    def __init__(self, device: torch.device) -> None:
        self.passed, self.event = time.perf_counter(), None
        if device.type != "cpu":
            self.event = torch.get_device_module(device).Event(enable_timing=True)
            self.event.record()

    def wait(self) -> None:
        """Return when the device has come here; what was queued afterwards goes on."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: Mark) -> float:
        """Seconds that the device took from `earlier` to here, by its own clock; waits for it."""
        self.wait()
        if self.event is None or earlier.event is None:
            return self.passed - earlier.passed
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class Later:
    """The values of a small 1-D tensor as they are at this point of the device's queue, copied to the host in the background."""

    def __init__(self, values: Tensor) -> None:
        # Only copies to pinned memory run in the background.
        self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type != "cpu")
        self.host.copy_(values.detach(), non_blocking=True)
        self.mark = Mark(values.device)

    def numbers(self) -> list[float]:
        """The values; waits for the device to get there, which it has long done when a step of work was queued since."""
        self.mark.wait()
        numbers: list[float] = self.host.tolist()
        return numbers
