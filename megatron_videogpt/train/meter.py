"""Numbers between two log lines: loss, speed, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..model.flops import training_flops
from ..objective.build import work_of
from ..plan.estimate import hardware_flops
from ..sequence.intervals import attended_pairs
from ..sequence.row import Row
from .async_values import AsyncReduction, AsyncValue
from .feed import is_reader
from .metrics import peak_tflops
from .run import Run
from .statistics import Statistics, Sums, add_sums, named_means, named_sums, reduce_statistics


class RowWork(NamedTuple):
    """Work of whole packed rows: tokens and the pairs that they attend, of all masks; unscored: rows among them that no
    head reads, and the pairs of these in a mean mask.
    """

    tokens: int
    pairs: int
    unscored: int
    unscored_pairs: int


def row_work(rows: list[Row]) -> RowWork:
    """Of rows on the CPU."""
    tokens, scored = sum(row.length for row in rows), sum(len(row.scored_rows) for row in rows)
    pairs = unscored = 0
    for row in rows:
        whole = sum(attended_pairs(mask.intervals) for mask in row.masks)
        seen = sum(attended_pairs(mask.intervals[row.scored_rows]) for mask in row.masks)
        # Of the last layer alone, whichever mask it has.
        pairs, unscored = pairs + whole, unscored + (whole - seen) // len(row.masks)
    return RowWork(tokens, pairs, tokens - scored, unscored)


@dataclass(frozen=True)
class Interval:
    """What lies between two log lines, over all ranks: statistics and `RowWork` summed; largest: microseconds that a
    rank waited for data, encoded, and of these waited, and bytes at the peak, of the rank that has most.
    """

    statistics: AsyncValue
    before: Sums
    work: AsyncReduction
    largest: AsyncReduction
    steps: int


class Meter:
    """Sums statistics and work from step to step; the host waits for the device in `flush` only.

    `flush` adds to `pending` of the run's state.
    """

    def __init__(self, run: Run) -> None:
        self.config, self.platform, self.state, self.group = run.config, run.platform, run.state, run.control
        self.weights, self.names = work_of(run.config, run.codec).weights, run.metric_names
        self.peak = run.config.logging.peak_tflops or peak_tflops(run.platform.device_name)
        self._clear()

    def _clear(self) -> None:
        self.totals: Statistics | None = None
        self.work = RowWork(0, 0, 0, 0)
        self.steps, self.waited, self.encoded, self.exposed = 0, 0.0, 0.0, 0.0

    def add(self, totals: Statistics, work: RowWork, waited: float, encoded: float = 0.0) -> None:
        """One step of this rank.  totals: its `statistics`; work: of its rows; waited: seconds for data; encoded:
        seconds that encoding took, which comes last in what is waited for.
        """
        self.totals = totals if self.totals is None else self.totals + totals
        self.work = RowWork(*(a + b for a, b in zip(self.work, work)))
        self.waited, self.steps = self.waited + waited, self.steps + 1
        self.encoded, self.exposed = self.encoded + encoded, self.exposed + min(encoded, waited)

    def flush(self) -> None:
        """Move this rank's statistics into the run's state, summed over ranks, so that a checkpoint holds them."""
        if self.totals is not None:
            self.state.pending = add_sums(self.state.pending, reduce_statistics(self.totals).numbers())
            self.totals = None

    def close(self) -> Interval:
        """End the interval after a step that was added; its numbers are on their way, and the next interval begins.  A
        collective.
        """
        assert self.totals is not None
        reduced = reduce_statistics(self.totals)
        # The ranks that share samples did the same work together: one of them counts it.
        work = AsyncReduction(list(self.work) if is_reader() else [0] * len(self.work), self.group)
        times = [round(seconds * 1e6) for seconds in (self.waited, self.encoded, self.exposed)]
        largest = AsyncReduction([*times, self.platform.memory_peak()], self.group, largest=True)
        interval = Interval(AsyncValue(reduced.sums, reduced.counts), self.state.pending, work, largest, self.steps)
        self.state.pending = {}
        self._clear()
        return interval

    def describe(self, interval: Interval, seconds: float) -> dict[str, float]:
        """Means of an interval that took so long, over all ranks."""
        named = named_means(add_sums(interval.before, named_sums(self.names, interval.statistics.numbers())))
        tokens, pairs, *unscored = interval.work.numbers()
        work = tokens, pairs, (unscored[0], unscored[1])
        waited, encoded, exposed, memory = interval.largest.numbers()
        devices = torch.distributed.get_world_size() * 1e12
        named["tokens_per_second"] = tokens / seconds
        named["step_time"], named["data_wait"] = seconds / interval.steps, waited / 1e6 / interval.steps
        if encoded:
            named["encode_time"] = encoded / 1e6 / interval.steps
            named["encode_wait"] = exposed / 1e6 / interval.steps
        named["tflops_per_device"] = training_flops(self.config.model, self.weights, *work) / seconds / devices
        named["memory_peak_gib"] = memory / 2**30
        if self.peak:
            named["mfu"] = named["tflops_per_device"] / self.peak
            named["hfu"] = hardware_flops(self.config, self.weights, *work) / seconds / devices / self.peak
        return named
