"""Samples that could not be read hold their place in a row and change nothing: loss, counts and gradients are those of
the row without them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.sequence.row import Row

CHANNELS, TABLE = 4, 32
OBJECTIVE = NextClipDiffusion(2, TABLE)


pytestmark = pytest.mark.usefixtures("processes")


def sample(key: int, clips: tuple[int, ...], side: int = 4) -> Sample:
    return Sample(
        key=key, name=str(key), mean=normal(key, "latents", (sum(clips), CHANNELS, side, 4)), logvar=None, clips=clips
    )


def blank(of: Sample) -> Sample:
    return replace(of, mean=torch.zeros_like(of.mean), scored=False)


FIRST, LOST, LAST = sample(1, (2, 1, 1)), sample(2, (1, 3, 1), side=6), sample(3, (3,))


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    """Weights all over, those of tests/dense.py, so that every gradient has a size."""
    from tests import dense
    from tests.parity.test_dense import build

    tiny = dense.Tiny(channels=CHANNELS, table=TABLE)
    return build(tiny, dense.random_weights(tiny, seed=3), backend="ranged")[0]


def outcome(model, row: Row) -> tuple[Tensor, int, dict[str, list[float]], dict[str, Tensor]]:  # type: ignore[no-untyped-def]
    """Loss, count, sum and count of each metric, and gradients of a row."""
    from megatron_videogpt.train.statistics import statistics

    model.zero_grad(set_to_none=True)
    score = OBJECTIVE.score(model(row), row)
    score.total.backward()
    return (
        score.total.detach(),
        score.count,
        statistics(OBJECTIVE, score).numbers(),
        {name: p.grad.clone() for name, p in model.named_parameters()},
    )


def test_a_blank_changes_nothing_for_the_others(model) -> None:  # type: ignore[no-untyped-def]
    with_blank = OBJECTIVE.prepare([FIRST, blank(LOST), LAST], 400)
    without = OBJECTIVE.prepare([FIRST, LAST], 8)
    assert with_blank.length == 400 and with_blank.count == without.count == 7 and len(with_blank.counted) == 12
    total, count, numbers, gradients = outcome(model, with_blank)
    expected, counted, wanted, reference = outcome(model, without)
    assert count == counted == 7 and float(expected) > 1
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    # Sums and frames of every noise bin, too.
    assert numbers.keys() == wanted.keys() and len(wanted) == 6
    for name, pair in wanted.items():
        assert numbers[name] == pytest.approx(pair, rel=1e-5), name
    assert sum(count for name, (_, count) in numbers.items() if name != "loss") == 7
    for name, value in reference.items():
        assert value.abs().max() > 0, name
        assert float((gradients[name] - value).abs().max() / value.abs().max()) < 2e-5, name


def test_a_row_of_blanks_has_no_loss_and_touches_every_parameter(model) -> None:  # type: ignore[no-untyped-def]
    for samples, length in (
        ([blank(FIRST), blank(LOST)], 320),
        ([Sample(0, "", torch.zeros(1, CHANNELS, 2, 2), None, (1,), scored=False)], 16),
    ):
        row = OBJECTIVE.prepare(samples, length)
        assert row.length == length
        total, count, numbers, gradients = outcome(model, row)
        assert float(total) == 0 and count == 0 and not any(map(any, numbers.values()))
        assert all(not value.any() and bool(torch.isfinite(value).all()) for value in gradients.values())
        assert gradients.keys() == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("samples", [[FIRST, blank(LOST), LAST], [blank(LOST), FIRST], [blank(FIRST)]])
def test_shards_count_what_the_row_counts(samples: list[Sample]) -> None:
    """Context parallel shards: counts on the first one alone, losses add up, and nothing comes from a blank."""
    from megatron_videogpt.train.statistics import statistics

    row = OBJECTIVE.prepare(samples, 4)
    output = normal(7, "output", tuple(row.target.shape))
    whole = statistics(OBJECTIVE, OBJECTIVE.score(output, row))
    parts = []
    for rank in range(4):
        shard, here = row.shard(rank, 4), row.scored_rows // (row.length // 4) == rank
        assert shard.count == (row.count if rank == 0 else 0) and float(shard.counted.sum()) == shard.count
        parts.append(statistics(OBJECTIVE, OBJECTIVE.score(output[here], shard)))
    added = sum(parts[1:], parts[0])
    torch.testing.assert_close(added.sums, whole.sums)
    assert torch.equal(added.counts, whole.counts) and whole.counts.dtype is torch.int64
    scored = [sample for sample in samples if sample.scored]
    assert row.count == sum(sum(sample.clips) for sample in scored)
    # By hand: squared error of each scored frame, averaged inside it.
    error = (output - row.target).square().mean(dim=1)
    place, expected = 0, 0.0
    for item in samples:
        patches = item.mean.shape[0] * item.mean.shape[2] * item.mean.shape[3] // 4
        expected += (
            float(error[place : place + patches].sum()) / (patches // item.mean.shape[0]) if item.scored else 0.0
        )
        place += patches
    assert float(whole.sums[0]) == pytest.approx(expected, rel=1e-5)
