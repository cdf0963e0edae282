"""Shards of a packed row: together they are the row, each token once, and their losses add up."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.objective.noise import normal

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
        torch.equal(shard.intervals, row.intervals)
        and torch.equal(shard.units["timestep"], row.units["timestep"])
        and shard.streams.keys() == row.streams.keys()
        for shard in shards
    )
    for name, stream in row.streams.items():
        # Back in the whole row's numbering; every place once, with what belongs to it.
        parts = [shard.streams[name] for shard in shards]
        places = torch.cat([part.rows + rank * each for rank, part in enumerate(parts)])
        order, whole = places.argsort(), stream.rows.argsort()
        assert torch.equal(places[order], stream.rows[whole])
        scored = {"target": row.target, "weight": row.weight} if name == row.scored else {}
        for key, value in {**stream.values, **scored}.items():
            pieces = [getattr(shard, key) if key in scored else shard.streams[name][key] for shard in shards]
            assert torch.equal(torch.cat(pieces)[order], value[whole]), (name, key)
    assert [shard.count for shard in shards] == [len(row.counted)] + [0] * (size - 1)


@settings(deadline=None, max_examples=30)
@given(SAMPLES, st.sampled_from([2, 4]))
def test_losses_of_shards_add_up(shapes: list[tuple[list[int], tuple[int, int]]], size: int) -> None:
    row = OBJECTIVE.prepare(samples_of(shapes), size)
    output = normal(7, "output", tuple(row.target.shape))
    total, per_frame = OBJECTIVE.loss(output, row)
    parts = []
    for rank in range(size):
        shard = row.shard(rank, size)
        here = row.scored_rows // (row.length // size) == rank
        parts.append(OBJECTIVE.loss(output[here], shard))
    torch.testing.assert_close(sum(part[0] for part in parts), total)
    torch.testing.assert_close(sum(part[1] for part in parts), per_frame)
