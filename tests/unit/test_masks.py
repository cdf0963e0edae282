"""Several masks, with orders and groups, and side inputs of layers: against the dense twin of `tests/factorised.py`,
and each part by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_videogpt.attention import attend
from megatron_videogpt.attention.groups import calls
from megatron_videogpt.attention.plan import Costs
from megatron_videogpt.errors import UserError
from megatron_videogpt.model.cache import CachedRow, KeyValueCache
from megatron_videogpt.sequence.intervals import dense_mask
from megatron_videogpt.sequence.row import Mask, grouped_mask
from tests import factorised_dense as dense

pytestmark = pytest.mark.usefixtures("processes")

WEIGHTS = dense.weights_of()


def built(backend: str = "ranged", **parallel: Any) -> Any:
    from tests import factorised

    return factorised.build(factorised.config_of(**parallel), backend, WEIGHTS)[0]


@pytest.mark.parametrize("backend", ["reference", "ranged"])
@pytest.mark.parametrize(
    ("recompute", "layers"), [("none", 0), ("selective", 0), ("mlp", 0), ("full", 0), ("full", 3), ("mlp", 2)]
)
def test_network_is_the_dense_one(backend: str, recompute: str, layers: int) -> None:
    from tests import factorised

    model = built(backend, recompute=recompute, recompute_layers=layers)
    rows = [factorised.row_of(samples) for samples in dense.ROWS]
    assert model.scored_only and any(len(row.scored_rows) < row.length for row in rows)
    assert all(mask.groups is not None for row in rows for mask in row.masks)
    outputs, gradients = dense.truth(dense.ROWS, WEIGHTS)
    # Both forward passes before the backward ones, as in a pipeline: each goes by its own row.
    found = [model(row) for row in rows]
    losses = [dense.loss_of(output, row.target) for output, row in zip(found, rows)]
    for loss in losses:
        (loss / sum(row.count for row in rows)).backward()
    for output, wanted in zip(found, outputs):
        assert dense.error(output, wanted) <= 1e-5
    named = dict(factorised.named(model))
    assert named.keys() == gradients.keys()
    for name, parameter in named.items():
        assert dense.error(parameter.grad, gradients[name]) <= 1e-5, name
    with torch.no_grad():
        # Without gradients the last layer computes all rows.
        assert dense.error(model(rows[0]), outputs[0]) <= 1e-5


@pytest.mark.parametrize("backend", ["reference", "ranged"])
def test_an_order_counts_in_the_rows_of_a_cache(backend: str) -> None:
    """Frame after frame against what is kept of those before, in buffers that are stored frame by frame and attended
    cell by cell.
    """
    from tests import factorised

    sample, model = dense.Sample(7, frames=4, cells=3, words=2), built(backend)
    whole, buffers, found = factorised.row_of([sample], multiple=1), KeyValueCache(), []
    buffers.arrange(sample.frames * sample.cells, 0, [])
    for frame in range(sample.frames):
        now, kept = frame + 1, (frame + 1) * sample.cells
        own, cell = torch.tensor([[kept - sample.cells, kept, 0, 0]]), torch.arange(sample.cells)[:, None]
        over_time = torch.cat([cell * now, (cell + 1) * now, 0 * cell, 0 * cell], dim=1)
        order = torch.arange(kept).view(now, sample.cells).T.flatten()
        masks = Mask(own.expand(sample.cells, 4).int()), Mask(over_time.int(), order)
        places = torch.arange(kept - sample.cells, kept)
        with torch.no_grad():
            row = replace(whole.shard(frame, sample.frames), masks=masks)
            found.append(model(row, CachedRow(buffers, places, kept, kept, sample.cells)))
    assert dense.error(torch.cat(found), dense.twin(WEIGHTS, sample)) <= 1e-5


def test_trained_side_inputs_are_refused_in_a_pipeline() -> None:
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.platforms import activate
    from tests import factorised

    with pytest.raises(UserError, match=r"parallel.pipeline = 2: .* it needs parallel.pipeline=1"):
        VideoGPT(factorised.config_of(pipeline=2), dense.CHANNELS, activate("cpu"), "ranged", factorised.ENDS)


def test_a_side_input_that_nobody_gives_is_named() -> None:
    from megatron_videogpt.model.inputs import LayerInputs

    with pytest.raises(KeyError, match="weather"):
        LayerInputs(()).side("weather", None)


# Groups.


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    """Intervals of equal groups under any pattern of two intervals, and of other tokens that may see everything."""
    count, size, others = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(0, 5))
    length = count * size + others

    def row(keys: int) -> list[int]:
        a0, a1, b0, b1 = sorted(draw(st.lists(st.integers(0, keys), min_size=4, max_size=4)))
        cut = [*((a0, a1) if a1 > a0 else (0, 0)), *((b0, b1) if b1 > b0 else (0, 0))]
        return cut if any(cut) else [0, keys, 0, 0]

    pattern = torch.tensor([row(size) for _ in range(size)], dtype=torch.int32).view(size, 2, 2)
    moved = [torch.where(pattern[..., 1:] > pattern[..., :1], pattern + n * size, 0) for n in range(count)]
    rest = torch.tensor([row(length) for _ in range(others)], dtype=torch.int32).view(-1, 2, 2)
    return torch.cat([*moved, rest]).view(-1, 4).int(), (count, size)


@settings(deadline=None, max_examples=60)
@given(groups(), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.sampled_from([torch.float32, torch.float64]))
def test_groups_are_a_hint(case: tuple[Tensor, tuple[int, int]], heads: tuple[int, int], dtype: torch.dtype) -> None:
    intervals, size = case
    assert grouped_mask(intervals, size).groups == size
    noise = torch.Generator().manual_seed(len(intervals))
    shapes = [(len(intervals), count, 8) for count in (heads[0], heads[1], heads[1], heads[0])]
    *leaves, grad = (torch.randn(shape, generator=noise).to(dtype) for shape in shapes)
    leaves = [x.requires_grad_() for x in leaves]

    def results(backend: str, hint: tuple[int, int] | None) -> list[Tensor]:
        out = attend(backend, *leaves, intervals, 0.3, groups=hint)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    for with_hint, without in zip(results("ranged", size), results("ranged", None)):
        # Where a query sees one key its gradient is an exact zero, made of terms of the inputs' size.
        assert (with_hint - without).abs().max() <= 1e-6 * max(1.0, float(without.detach().abs().max()))
    assert all(map(torch.equal, results("reference", size), results("reference", None)))


@settings(deadline=None, max_examples=30)
@given(groups())
def test_groups_are_one_call_that_covers_their_pairs(case: tuple[Tensor, tuple[int, int]]) -> None:
    intervals, size = case
    together, length = size[0] * size[1], len(intervals)
    covered = torch.zeros(1, 1, length, length)
    first, *others = calls(intervals, Costs(call=5.0, key=2.0, mask=0.06), size)
    assert first.groups == size[0] and all(call.groups == 1 and call.box.row0 >= together for call in others)
    for call in (first, *others):
        pattern = 1.0 if call.box.mask is None else (call.box.mask == 0).float()
        for number, rows in enumerate(call.rows(covered)):
            keys = rows[0, :, call.box.key0 : call.box.key1].unflatten(1, (call.groups, -1))
            keys[:, number] += pattern
    assert torch.equal(covered[0, 0], dense_mask(intervals).float())


FRAMES = torch.tensor([[0, 2, 0, 0], [0, 1, 1, 2], [2, 4, 0, 0], [2, 3, 3, 4], [4, 5, 0, 0]], dtype=torch.int32)


def changed(row: int, *intervals: int) -> Tensor:
    return torch.cat([FRAMES[:row], torch.tensor([intervals], dtype=torch.int32), FRAMES[row + 1 :]])


@pytest.mark.parametrize(
    ("intervals", "size", "order", "message"),
    [
        (FRAMES, (3, 2), None, "3 groups of 2 tokens are not in a row of 5"),
        (FRAMES, (0, 2), None, "0 groups of 2 tokens"),
        (
            changed(3, 2, 3, 0, 0),
            (2, 2),
            None,
            r"token 1 of group 1 \(of 2 x 2\), intervals \[2, 3, 0, 0\], does not see",
        ),
        (changed(2, 2, 5, 0, 0), (2, 2), None, r"token 0 of group 1 .* \[2, 5, 0, 0\], sees keys outside its group"),
        (changed(3, 0, 1, 3, 4), (2, 2), None, r"token 1 of group 1 .* sees keys outside its group"),
        (FRAMES, (2, 2), [0, 2, 1, 3, 4], r"token 1 of group 0 .* sees keys outside"),
        (FRAMES, (2, 2), [0, 1, 2, 2, 4], "the order of 5 tokens has 5 entries and not each token once"),
        (FRAMES, (2, 2), [0, 1, 2, 3], "the order of 5 tokens has 4 entries"),
    ],
)
def test_a_wrong_hint_is_found(intervals: Tensor, size: tuple[int, int], order: list[int] | None, message: str) -> None:
    assert grouped_mask(FRAMES, (2, 2)) == Mask(FRAMES, None, (2, 2))
    with pytest.raises(ValueError, match=message):
        grouped_mask(intervals, size, None if order is None else torch.tensor(order))
