"""Numbers between two log lines: loss, speed, memory."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from ..config.estimate import training_flops
from ..config.schema import Config
from ..platforms import Platform
from .metrics import peak_tflops
from .step import describe, reduce_statistics


class Meter:
    """Sums statistics, work and time between log lines; nothing here waits for the device until `report`.

    state: of the run; `flush` adds to its `pending`.  channels: latent channels of the codec.
    """

    def __init__(self, config: Config, platform: Platform, channels: int, state: Any) -> None:
        self.config, self.platform, self.channels, self.state = config, platform, channels, state
        self.peak = config.logging.peak_tflops or peak_tflops(platform.device_name)
        self._clear()

    def _clear(self) -> None:
        self.totals: Tensor | None = None
        self.tokens = self.pairs = self.steps = 0
        self.seconds = self.waited = 0.0

    def add(self, totals: Tensor | None, work: list[tuple[int, int]], seconds: float, waited: float) -> None:
        """One step of this rank; totals: its `statistics`, None for a step that was skipped."""
        if totals is not None:
            self.totals = totals if self.totals is None else self.totals + totals
        self.tokens += sum(tokens for tokens, _ in work)
        self.pairs += sum(pairs for _, pairs in work)
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + 1

    def flush(self) -> None:
        """Move this rank's statistics into the run's state, summed over ranks, so that a checkpoint holds them."""
        if self.totals is not None:
            reduced = reduce_statistics(self.totals).tolist()
            self.state.pending = [a + b for a, b in zip(self.state.pending, reduced)]
            self.totals = None

    def report(self) -> dict[str, float]:
        """Means since the last report, over all ranks."""
        self.flush()
        named = describe(torch.tensor(self.state.pending, dtype=torch.float64))
        self.state.pending = [0.0] * len(self.state.pending)
        replicas = parallel_state.get_data_parallel_world_size()
        flops = training_flops(self.config.model, self.channels, self.tokens * replicas, self.pairs * replicas)
        named["tokens_per_second"] = self.tokens * replicas / self.seconds
        named["step_time"], named["data_wait"] = self.seconds / self.steps, self.waited / self.steps
        named["tflops_per_device"] = flops / self.seconds / torch.distributed.get_world_size() / 1e12
        named["memory_peak_gib"] = self.platform.memory_peak() / 2**30
        if self.peak:
            named["mfu"] = named["tflops_per_device"] / self.peak
        self._clear()
        return named
