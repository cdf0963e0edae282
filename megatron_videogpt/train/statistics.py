"""The loss and the objective's other numbers, as sums and counts that micro-batches, steps and ranks add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from ..objective.base import Objective, Score

Sums = dict[str, list[float]]
"""Metric -> [sum, count], as in ``state.json``."""


def metric_names(objective: Objective, part: str = "", held_out: bool = False) -> tuple[str, ...]:
    """What is added up in a part's turn ("" for the first one's): the loss, then the objective's own; held_out: also
    those of validation alone.
    """
    loss = f"{part}_loss" if part else "loss"
    wanted = (metric for metric in objective.metrics if metric.part == part and (held_out or not metric.held_out))
    return (loss, *(metric.name for metric in wanted))


@dataclass(frozen=True)
class Statistics:
    """Sums on the device.

    names: `metric_names`; sums: float32 ``[names]``; counts: int64 ``[names]``; of several samples apart ``[samples,
    names]``.  Not float64, which Ascend's collectives refuse.
    """

    names: tuple[str, ...]
    sums: Tensor
    counts: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        assert self.names == other.names
        return replace(self, sums=self.sums + other.sums, counts=self.counts + other.counts)

    def masked(self, taken: Tensor) -> Statistics:
        """These if `taken`, a bool ``[]`` on the device; else zeros."""
        return replace(self, sums=self.sums.masked_fill(~taken, 0.0), counts=self.counts.masked_fill(~taken, 0))

    def numbers(self) -> Sums:
        """On the host, which waits for them."""
        return named_sums(self.names, [*self.sums.tolist(), *self.counts.tolist()])


def statistics(objective: Objective, score: Score, part: str = "") -> Statistics:
    """Of one row, or of a shard of one, in a part's turn; where no gradient is taken, of validation."""
    whole = torch.full((1,), score.count, dtype=torch.int64, device=score.counts.device)
    sums = torch.cat([score.total.detach().float().view(1), score.sums])
    names = metric_names(objective, part, not torch.is_grad_enabled())
    assert len(names) == len(sums), f"{len(sums) - 1} sums of the metrics {names[1:]}"
    return Statistics(names, sums, torch.cat([whole, score.counts]))


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Those of several parts' turns, whose names differ."""
    names = tuple(name for part in parts for name in part.names)
    assert len(set(names)) == len(names), f"two parts have a metric of one name: {names}"
    return Statistics(names, torch.cat([part.sums for part in parts]), torch.cat([part.counts for part in parts]))


def empty_statistics(objective: Objective, device: torch.device, part: str = "") -> Statistics:
    """`statistics` of nothing."""
    names = metric_names(objective, part, not torch.is_grad_enabled())
    zeros = torch.zeros(len(names), device=device)
    return Statistics(names, zeros, zeros.long())


def of_samples(empty: Statistics, each: Sequence[Statistics], places: range, total: int) -> Statistics:
    """A table ``[total, names]`` of samples, those of this rank at their places; nothing of the others, which
    `reduce_statistics` adds, nor of any where `each` is empty, as off the last pipeline stage.
    """
    sums, counts = (part.expand(total, -1).clone() for part in (empty.sums, empty.counts))
    for place, one in zip(places, each):
        assert one.names == empty.names
        sums[place], counts[place] = one.sums, one.counts
    return Statistics(empty.names, sums, counts)


def named_sums(names: Sequence[str], numbers: Sequence[float]) -> Sums:
    """All sums and then all counts, in a row -> by name."""
    return {name: [numbers[n], float(numbers[n + len(names)])] for n, name in enumerate(names)}


def add_sums(first: Sums, second: Sums) -> Sums:
    """Sum and count of each name that either has."""
    return {
        name: [a + b for a, b in zip(first.get(name, (0.0, 0.0)), second.get(name, (0.0, 0.0)))]
        for name in first | second
    }


def read_sums(stored: Any, names: Sequence[str]) -> Sums:
    """What a checkpoint holds.  Earlier releases kept a list: sum and count of the loss, then the sums and then the
    counts of the others, in the order of `names`.
    """
    if isinstance(stored, dict):
        return {name: [float(value) for value in pair] for name, pair in stored.items()}
    loss, others = stored[:2], stored[2:]
    half = len(others) // 2
    assert half == len(names) - 1, f"{len(stored)} numbers do not fit {names}"
    return {names[0]: list(loss)} | {
        name: list(pair) for name, *pair in zip(names[1:], others[:half], others[half:], strict=True)
    }


def named_means(sums: Sums) -> dict[str, float]:
    """The means; what nothing counts to is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def reduce_statistics(values: Statistics) -> Statistics:
    """Sum over data and context parallel ranks, the same on every rank of every pipeline stage."""
    summed = replace(values, sums=values.sums.clone(), counts=values.counts.clone())
    last, stages = (
        parallel_state.get_pipeline_model_parallel_last_rank(),
        parallel_state.get_pipeline_model_parallel_group(),
    )
    for part in (summed.sums, summed.counts):
        torch.distributed.all_reduce(part, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.broadcast(part, last, group=stages)
    return summed
