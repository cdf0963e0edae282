"""Numbers that a device has not computed yet, read without holding it up."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class DeviceEvent:
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

    def since(self, earlier: DeviceEvent) -> float:
        """Seconds that the device took from `earlier` to here, by its own clock; waits for it."""
        self.wait()
        if self.event is None or earlier.event is None:
            return self.passed - earlier.passed
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class AsyncValue:
    """The values of small 1-D tensors as they are at this point of the device's queue, copied to the host in the
    background.
    """

    def __init__(self, *tensors: Tensor) -> None:
        # Only copies to pinned memory run in the background.
        self.host = [
            torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type != "cpu") for values in tensors
        ]
        for copy, values in zip(self.host, tensors):
            copy.copy_(values.detach(), non_blocking=True)
        self.event = DeviceEvent(tensors[0].device)

    def numbers(self) -> list[float]:
        """The values of all tensors, one after another; waits for the device to get there, which it has long done when
        a step of work was queued since.
        """
        self.event.wait()
        return [number for copy in self.host for number in copy.tolist()]


class AsyncReduction:
    """Whole numbers on their way to their sum, or to their largest, over ranks, in the background; a collective.

    group: of all ranks, on CPU tensors, so that no device waits.  They travel as int64: tokens and bytes of a large run
    are no float32 numbers.
    """

    def __init__(self, numbers: list[int], group: Any, largest: bool = False) -> None:
        self.values = torch.tensor(numbers, dtype=torch.int64)
        operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        self.work = torch.distributed.all_reduce(self.values, op=operation, group=group, async_op=True)

    def numbers(self) -> list[int]:
        """What became of them, the same on every rank; waits until it is there."""
        self.work.wait()
        numbers: list[int] = self.values.tolist()
        return numbers
