"""Samples that could not be read, counted by kind over all ranks: in the run's metrics and state, without holding up a
step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.bad import REASONS, BadVideo, record, recorded
from ..platforms.world import is_rank_zero
from .async_values import AsyncReduction
from .feed import is_reader
from .metrics import MetricsWriter
from .records import Records

KINDS = tuple(REASONS)
REJECTED = "rejected.jsonl"
"""File in the run's folder with every name that was rejected, once."""


class RejectedCounts:
    """Rejections since the run began.

    group: of all ranks, on CPU tensors, so that no device waits; total: by kind, over all ranks, of the run's state;
    `receive` adds to it.
    """

    def __init__(self, group: Any, total: dict[str, int]) -> None:
        self.group, self.total = group, total
        self._mine = [0] * len(KINDS)

    def add(self, counts: Mapping[str, int]) -> None:
        """What the ranks that share a step's samples found in it; the one that read them counts."""
        if is_reader():
            self._mine = [mine + counts.get(kind, 0) for mine, kind in zip(self._mine, KINDS)]

    def start_sum(self) -> AsyncReduction:
        """Sum what was added since the last call over all ranks, in the background; a collective."""
        counts, self._mine = self._mine, [0] * len(KINDS)
        return AsyncReduction(counts, self.group)

    def finish_sum(self, sent: AsyncReduction) -> None:
        """Add what was sent to the total; waits until it is there."""
        for kind, count in zip(KINDS, sent.numbers()):
            if count:
                self.total[kind] = self.total.get(kind, 0) + count

    def metrics(self) -> dict[str, float]:
        """The total as metrics: the kinds that were found."""
        return {f"rejected/{kind}": float(count) for kind, count in self.total.items()}


def writes_rejected(records: Records) -> Callable[[Path, BadVideo], None]:
    """`data.bad.record`, which a full disk does not make fail."""

    def write(file: Path, error: BadVideo) -> None:
        records.attempt(file.name, lambda: record(file, error), "name")

    return write


def record_left_out(run: Any, writer: MetricsWriter) -> None:
    """What the data set's index had to leave out: counted in the metrics, the first ones named in `REJECTED`."""
    if not is_rank_zero() or not run.source.left_out:
        return
    file = run.output / REJECTED
    known, write = recorded(file), writes_rejected(run.records)
    for error in run.source.skipped:
        if error.path not in known:
            write(file, error)
    writer.log(run.state.step, {f"left_out/{kind}": float(count) for kind, count in run.source.left_out.items()})
