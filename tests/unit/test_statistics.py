"""Statistics by name: what micro-batches, steps and ranks add up, and what earlier checkpoints hold of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_videogpt.objective.base import Metric, Score
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion

pytestmark = pytest.mark.usefixtures("processes")

TWO = SimpleNamespace(metrics=(Metric("accuracy", "token", "right"), Metric("entropy", "token", "bits")))


def score(total: float, count: int, sums: list[float], counts: list[int]) -> Score:
    return Score(torch.tensor(total, requires_grad=True), count, torch.tensor(sums), torch.tensor(counts))


def test_sums_of_micro_batches_are_told_apart_by_name() -> None:
    from megatron_videogpt.train.statistics import empty_statistics, named_means, statistics

    parts = [statistics(TWO, score(3.0, 2, [1.0, 0.5], [4, 0])), statistics(TWO, score(5.0, 2, [2.0, 0.0], [4, 0]))]
    added = sum(parts, empty_statistics(TWO, torch.device("cpu")))
    assert added.numbers() == {"loss": [8.0, 4.0], "accuracy": [3.0, 8.0], "entropy": [0.5, 0.0]}
    assert added.sums.dtype is torch.float32 and added.counts.dtype is torch.int64 and not added.sums.requires_grad
    assert named_means(added.numbers()) == {"loss": 2.0, "accuracy": 0.375}, "nothing counts to entropy"
    nothing = added.masked(torch.tensor(False)).numbers()
    assert nothing.keys() == added.numbers().keys() and not any(map(any, nothing.values()))


def test_a_name_that_only_one_side_has_is_kept() -> None:
    from megatron_videogpt.train.statistics import add_sums

    assert add_sums({"loss": [1.0, 2.0], "a": [3.0, 1.0]}, {"loss": [0.5, 1.0], "b": [4.0, 2.0]}) == {
        "loss": [1.5, 3.0],
        "a": [3.0, 1.0],
        "b": [4.0, 2.0],
    }
    assert add_sums({}, {"loss": [0.5, 1.0]}) == {"loss": [0.5, 1.0]}


def test_the_list_of_earlier_releases_is_read() -> None:
    """``state.json`` held the loss's sum and count, then the sums and then the counts of the five noise bins."""
    from megatron_videogpt.train.statistics import metric_names, read_sums

    objective = NextClipDiffusion(2, 16)
    names = metric_names(objective)
    read = read_sums([7.5, 9.0, 1.0, 2.0, 3.0, 1.5, 0.0, 4.0, 2.0, 1.0, 2.0, 0.0], names)
    assert read == {
        "loss": [7.5, 9.0],
        "loss_t0.0-0.2": [1.0, 4.0],
        "loss_t0.2-0.4": [2.0, 2.0],
        "loss_t0.4-0.6": [3.0, 1.0],
        "loss_t0.6-0.8": [1.5, 2.0],
        "loss_t0.8-1.0": [0.0, 0.0],
    }
    assert read_sums(read, names) == read and read_sums({}, names) == {}
