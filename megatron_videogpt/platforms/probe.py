"""How fast a device is right now: a fixed piece of work, timed by the device itself."""

from __future__ import annotations

from typing import Any

import torch

SIDE, REPEATS = 4096, 10
"""Ten bf16 matrix products of 4096 x 4096: about 3 ms on an H100."""


class Probe:
    """A clock that advances by the time of the probe at every call but the first; the host never waits for the device.

    Collective kernels spin while they wait for other ranks, so that a device's busy time would not tell who is slow.

    device: of this rank; events: `torch.cuda` or `torch.npu`.
    """

    def __init__(self, device: torch.device, events: Any) -> None:
        self.device, self.events = device, events
        self.total, self.running, self.matrix = 0.0, None, None

    def __call__(self) -> float:
        """Seconds of all finished probes; starts the next one."""
        if self.matrix is None:
            self.matrix = torch.full((SIDE, SIDE), 0.01, dtype=torch.bfloat16, device=self.device)
        if self.running is not None and self.running[1].query():
            self.total += self.running[0].elapsed_time(self.running[1]) / 1e3
        start, end = (self.events.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            self.matrix @ self.matrix
        end.record()
        self.running = (start, end)
        return self.total
