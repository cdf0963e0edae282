"""Tiles of interval masks against the dense mask, and how long they are kept."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.attention.tiles import memoised, tile_lists, tiles
from megatron_videogpt.sequence.intervals import dense_mask


@st.composite
def masks(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Rows with any two disjoint intervals, in either order, adjacent or empty, over any number of keys."""
    rows, keys = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    table: list[list[int]] = []
    while len(table) < rows:
        cuts = sorted(draw(st.lists(st.integers(0, keys), min_size=4, max_size=4)))
        first, second = cuts[:2], cuts[2:]
        row = second + first if draw(st.booleans()) else first + second
        table += [row] * draw(st.integers(1, 6))
    return torch.tensor(table[:rows], dtype=torch.int32), keys


@settings(deadline=None, max_examples=150)
@given(masks(), st.sampled_from([1, 3, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_tiles_and_lists_match_the_dense_mask(mask: tuple[torch.Tensor, int], row_tile: int, key_tile: int) -> None:
    intervals, keys = mask
    dense = dense_mask(intervals, keys)
    blocks = [
        [dense[r : r + row_tile, c : c + key_tile] for c in range(0, keys, key_tile)]
        for r in range(0, len(dense), row_tile)
    ]
    full = torch.tensor([[bool(block.all()) and block.shape[1] == key_tile for block in row] for row in blocks])
    partial = torch.tensor([[bool(block.any()) for block in row] for row in blocks]) & ~full
    found = tiles(intervals, row_tile, key_tile, keys)
    assert torch.equal(found[0], partial) and torch.equal(found[1], full)
    by_row, by_key = tile_lists(intervals, row_tile, key_tile, keys)
    for lists, some, whole in ((by_row, partial, full), (by_key, partial.T, full.T)):
        for counts, numbers, expected in (
            (lists.partial_count, lists.partial, some),
            (lists.full_count, lists.full, whole),
        ):
            assert (
                counts.dtype == numbers.dtype == torch.int32
                and numbers.is_contiguous()
                and numbers.shape == expected.shape
            )
            for count, row, chosen in zip(counts.tolist(), numbers.tolist(), expected):
                assert row[:count] == chosen.nonzero().flatten().tolist() and not any(row[count:])


def test_building_grows_with_the_rows_and_not_with_their_square() -> None:
    """The largest tensor of all that building makes."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            self.most = max(
                [
                    self.most,
                    *(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)),
                ]
            )
            return result

    rows = 38_784
    start = torch.arange(rows, dtype=torch.int32)
    intervals = torch.stack([torch.zeros_like(start), start // 2, start, start + 1], dim=1)
    with Largest() as largest:
        tile_lists(intervals, 384, 128)
    assert largest.most == intervals.numel()


def test_memoised_follows_the_memory_and_not_the_object() -> None:
    built: list[str] = []

    def build() -> int:
        built.append("")
        return len(built)

    intervals = torch.zeros(4, 4, dtype=torch.int32)
    assert [memoised(x, "a", build) for x in (intervals, intervals.detach(), intervals)] == [1, 1, 1]
    assert memoised(intervals, "b", build) == 2 and memoised(intervals[:2], "a", build) == 3
    intervals[0, 1] = 1
    assert memoised(intervals, "a", build) == 4
    # The same content, and likely the same address, in another tensor.
    del intervals
    assert memoised(torch.zeros(4, 4, dtype=torch.int32), "a", build) == 5
