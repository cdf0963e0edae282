"""Shards of a packed row: together they are the row, each token once, and their losses add up."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.sequence.row import ROWS

OBJECTIVE = NextClipDiffusion(2, 16)
SAMPLES = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sampled_from([(2, 2), (2, 6), (4, 4)])),
    min_size=1,
    max_size=3,
)


def samples_of(shapes: list[tuple[list[int], tuple[int, int]]]) -> list[Sample]:
    return [
        Sample(key=n, name=str(n), mean=normal(n, "latents", (sum(clips), 3, *size)), logvar=None, clips=tuple(clips))
        for n, (clips, size) in enumerate(shapes)
    ]


@settings(deadline=None, max_examples=60)
@given(SAMPLES, st.sampled_from([1, 2, 3, 4, 8]))
def test_shards_are_the_row(shapes: list[tuple[list[int], tuple[int, int]]], size: int) -> None:
    row = OBJECTIVE.prepare(samples_of(shapes), size)
    shards = [row.shard(rank, size) for rank in range(size)]
    each = row.length // size
    assert [len(shard.positions) for shard in shards] == [each] * size and [shard.length for shard in shards] == [
        row.length
    ] * size
    assert torch.equal(torch.cat([shard.positions for shard in shards]), row.positions)
    assert all(
        torch.equal(shard.intervals, row.intervals) and torch.equal(shard.timestep, row.timestep) for shard in shards
    )
    for rows, others in ROWS.items():
        # Back in the whole row's numbering; every place once, with what belongs to it.
        places = torch.cat([getattr(shard, rows) + rank * each for rank, shard in enumerate(shards)])
        order = places.argsort()
        whole = getattr(row, rows).argsort()
        assert torch.equal(places[order], getattr(row, rows)[whole])
        for name in others:
            assert torch.equal(
                torch.cat([getattr(shard, name) for shard in shards])[order], getattr(row, name)[whole]
            ), name
    assert [shard.frames for shard in shards] == [len(row.timestep)] + [0] * (size - 1)


@settings(deadline=None, max_examples=30)
@given(SAMPLES, st.sampled_from([2, 4]))
def test_losses_of_shards_add_up(shapes: list[tuple[list[int], tuple[int, int]]], size: int) -> None:
    row = OBJECTIVE.prepare(samples_of(shapes), size)
    output = normal(7, "output", tuple(row.target.shape))
    total, count, per_frame = OBJECTIVE.loss(output, row)
    parts = []
    for rank in range(size):
        shard = row.shard(rank, size)
        here = row.noisy_rows // (row.length // size) == rank
        parts.append(OBJECTIVE.loss(output[here], shard))
    torch.testing.assert_close(sum(part[0] for part in parts), total)
    torch.testing.assert_close(sum(part[2] for part in parts), per_frame)
    assert sum(part[1] for part in parts) == count
