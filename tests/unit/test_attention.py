"""Attention backends against the dense oracle, the oracle against one softmax a row, the plan and FlexAttention's mask
against the dense mask.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_videogpt.attention import attend, chunks, flex
from megatron_videogpt.attention import plan as plans
from megatron_videogpt.attention.plan import Costs, plan
from megatron_videogpt.attention.rounding import allowances
from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask
from megatron_videogpt.sequence.layout import Clip, ClipShape, layout, pack

CLIPS = st.lists(st.builds(Clip, st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=4).map(tuple)
SHAPES = st.builds(
    ClipShape,
    clips=CLIPS,
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    prefix=st.integers(0, 3),
)
LAYOUTS = st.builds(
    lambda shapes, multiple: pack([layout(shape) for shape in shapes], multiple).intervals,
    st.lists(SHAPES, min_size=1, max_size=3),
    st.integers(1, 9),
)


@st.composite
def any_intervals(draw: st.DrawFn) -> torch.Tensor:
    """Rows that no layout would make: any two disjoint intervals, each possibly empty, not both; runs of equal rows of
    any length.
    """
    length = draw(st.integers(1, 24))
    rows: list[list[int]] = []
    while len(rows) < length:
        a0, a1, b0, b1 = sorted(draw(st.lists(st.integers(0, length), min_size=4, max_size=4)))
        row = [*((a0, a1) if a1 > a0 else (0, 0)), *((b0, b1) if b1 > b0 else (0, 0))]
        rows += [row if any(row) else [0, length, 0, 0]] * draw(st.integers(1, 4))
    return torch.tensor(rows[:length], dtype=torch.int32)


MASKS = LAYOUTS.filter(lambda intervals: len(intervals) > 0) | any_intervals()


def tensors(length: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and a gradient of the output."""
    noise = torch.Generator().manual_seed(seed)
    shapes = [(length, heads, dim), (length, kv_heads, dim), (length, kv_heads, dim), (length, heads, dim)]
    return [torch.randn(shape, generator=noise, dtype=torch.float64).to(dtype) for shape in shapes]


def results(backend: str, inputs: list[torch.Tensor], intervals: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients for q, k, v."""
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out = attend(backend, *leaves, intervals, 0.3)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def worst(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest error of any of the tensors, as a fraction of the largest value expected in it, but at least of 0.1:
    where every row sees one key, the gradient for q is an exact zero made of terms of the inputs' size, which is 1.
    """
    assert all(torch.isfinite(x).all() for x in actual)
    return max(
        float((a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=0.1))
        for a, e in zip(actual, expected)
    )


def assert_right(
    actual: list[torch.Tensor],
    exact: list[torch.Tensor],
    inputs: list[torch.Tensor],
    intervals: torch.Tensor,
    limit: float,
) -> None:
    """Each within `limit`, or within what rounding explains on any processor, where that is more."""
    allowed = allowances([x.double() for x in inputs], dense_mask(intervals), 0.3, inputs[0].dtype)
    for one, expected, most in zip(actual, exact, allowed):
        assert worst([one], [expected]) <= max(limit, most)


@settings(deadline=None, max_examples=10)
@given(any_intervals())
def test_reference_is_a_softmax_over_the_listed_keys(intervals: torch.Tensor) -> None:
    q, k, v, _ = tensors(len(intervals), 4, 2, 3, torch.float64)
    out = attend("reference", q, k, v, intervals, 0.3)
    for row, (a0, a1, b0, b1) in enumerate(intervals.tolist()):
        keys = [*range(a0, a1), *range(b0, b1)]
        for head in range(4):
            weights = [math.exp(0.3 * float(q[row, head] @ k[key, head // 2])) for key in keys]
            expected = sum(weight * v[key, head // 2] for weight, key in zip(weights, keys)) / sum(weights)
            torch.testing.assert_close(out[row, head], expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(MASKS, st.sampled_from([0.0, 5.0, 300.0]))
def test_plan_covers_each_pair_once(intervals: torch.Tensor, call: float) -> None:
    check_cover(intervals, plan(intervals, Costs(call=call, key=2.0, mask=0.06)))


def check_cover(intervals: torch.Tensor, boxes: tuple[plans.Rectangle, ...]) -> None:
    """Every attended pair is in one rectangle, no other is in any, and the first rectangle of some rows says so."""
    covered, written = torch.zeros(len(intervals), len(intervals)), torch.zeros(len(intervals))
    for box in boxes:
        rows = slice(box.row0, box.row1)
        assert box.first == bool((written[rows] == 0).all()) and (box.first or bool((written[rows] > 0).all()))
        written[rows] += 1
        covered[rows, box.key0 : box.key1] += 1.0 if box.mask is None else (box.mask == 0).float()
    assert torch.equal(covered, dense_mask(intervals).float())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MASKS, st.sampled_from([0.0, 5.0]))
def test_plan_of_tall_and_cut_rectangles_covers_each_pair_once(
    monkeypatch: pytest.MonkeyPatch, intervals: torch.Tensor, call: float
) -> None:
    monkeypatch.setattr(plans, "TALL", 6)
    monkeypatch.setattr(chunks, "TALL", 6)
    monkeypatch.setattr(chunks, "_MEDIUM", 3)
    monkeypatch.setattr(plans, "_KEYS", 4)
    plans._plan.cache_clear()
    check_cover(intervals, plan(intervals, Costs(call=call, key=2.0, mask=0.06)))
    plans._plan.cache_clear()


def test_plan_stacks_frames_on_their_history() -> None:
    # 20 clips of one frame of 242 tokens: without stacks, every rectangle but the masked ones has the 242 rows of one
    # frame.
    intervals = layout(ClipShape((Clip(1),) * 19 + (Clip(1, has_clean=False),), grid=(12, 20))).intervals
    boxes = plan(intervals, Costs(call=6000.0, key=8.0, mask=0.06))
    area = sum((box.row1 - box.row0) * (box.key1 - box.key0) for box in boxes)
    tall = sum((box.row1 - box.row0) * (box.key1 - box.key0) for box in boxes if box.row1 - box.row0 >= 768)
    assert tall > 0.5 * area and area < 1.03 * attended_pairs(intervals)
    assert all(box.key1 - box.key0 <= 2048 for box in boxes if box.mask is None)
    check_cover(intervals, boxes)


def test_plan_joins_hint_rows_and_keeps_packed_samples_apart() -> None:
    one = layout(ClipShape((Clip(1), Clip(1, has_clean=False)), grid=(4, 4)))
    intervals = pack([one, one]).intervals
    length = len(one)
    dear, free = (plan(intervals, Costs(call=call, key=0.0, mask=0.06)) for call in (500.0, 0.0))
    assert all(box.row1 <= length or box.row0 >= length for box in dear) and len(dear) < 10
    assert sum((box.row1 - box.row0) * (box.key1 - box.key0) for box in free) == int(dense_mask(intervals).sum())


@settings(deadline=None, max_examples=50)
@given(
    MASKS,
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]),
)
def test_ranged_matches_reference(
    intervals: torch.Tensor, heads: tuple[int, int], precision: tuple[torch.dtype, float]
) -> None:
    dtype, limit = precision
    inputs = tensors(len(intervals), *heads, 8, dtype)
    exact = results("reference", [x.double() for x in inputs], intervals)
    actual = results("ranged", inputs, intervals)
    assert all(x.dtype == dtype for x in actual)
    assert_right(actual, exact, inputs, intervals, limit)


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_ranged_matches_reference_with_many_rectangles(dtype: torch.dtype, limit: float) -> None:
    samples = [
        layout(ClipShape(tuple(Clip(n, has_clean=n != 3) for n in clips), grid=(9, 10)))
        for clips in ((1, 2, 3), (4, 3))
    ]
    intervals = pack(samples, 64).intervals
    inputs = tensors(len(intervals), 2, 1, 32, dtype)
    boxes = plan(intervals, Costs(call=8e6 / (14 * 4 * 32), key=8, mask=0.06))
    assert len(boxes) > 5 and not all(box.first for box in boxes)
    assert_right(
        results("ranged", inputs, intervals),
        results("reference", [x.double() for x in inputs], intervals),
        inputs,
        intervals,
        limit,
    )


def test_ranged_slices_of_scores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals = layout(ClipShape((Clip(2), Clip(2, has_clean=False)), grid=(3, 3))).intervals
    inputs = tensors(len(intervals), 2, 2, 8, torch.float64)
    expected = results("reference", inputs, intervals)
    monkeypatch.setattr("megatron_videogpt.attention.ranged._MATH_SCORES", 100)
    assert worst(results("ranged", inputs, intervals), expected) <= 1e-12


def test_ranged_takes_strided_views_and_large_scores() -> None:
    intervals = pack([layout(ClipShape((Clip(2), Clip(1, has_clean=False)), grid=(3, 3)))] * 2, 7).intervals
    plain = [x * 6 for x in tensors(len(intervals), 2, 2, 8, torch.float32)]
    strided = [torch.stack([x, x + 1], dim=-1)[..., 0] for x in plain]
    assert not strided[0].is_contiguous()
    assert torch.equal(attend("ranged", *strided[:3], intervals, 0.3), attend("ranged", *plain[:3], intervals, 0.3))
    assert_right(
        results("ranged", plain, intervals),
        results("reference", [x.double() for x in plain], intervals),
        plain,
        intervals,
        1e-5,
    )


def test_ranged_gradcheck() -> None:
    intervals = pack([layout(ClipShape((Clip(1), Clip(1, has_clean=False)), grid=(1, 2)))], 7).intervals
    inputs = [x.requires_grad_() for x in tensors(len(intervals), 2, 1, 3, torch.float64)[:3]]
    assert torch.autograd.gradcheck(lambda q, k, v: attend("ranged", q, k, v, intervals, 0.5), inputs)


def test_ranged_saves_nothing_that_grows_with_the_square_of_the_length() -> None:
    intervals = layout(ClipShape((Clip(4), Clip(4, has_clean=False)), grid=(8, 8))).intervals
    inputs = [x.requires_grad_() for x in tensors(len(intervals), 2, 2, 4, torch.float32)[:3]]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        attend("ranged", *inputs, intervals, 0.5)
    assert len(saved) == 5 and max(saved) == inputs[0].numel()


@settings(deadline=None, max_examples=40)
@given(MASKS)
def test_flex_mask_matches_dense_mask(intervals: torch.Tensor) -> None:
    length, tile = len(intervals), 4
    mask = flex.block_mask(intervals, length, tile)
    rows = length + -length % tile
    dense = torch.zeros(rows, rows, dtype=torch.bool)
    dense[:length, :length] = dense_mask(intervals)
    # Padding looks at key 0, so that no row is empty; no row looks at it.
    dense[length:, 0] = True
    seen = dense.unflatten(1, (-1, tile)).unflatten(0, (-1, tile)).sum((1, 3))
    lists = {
        "partial": (mask.kv_num_blocks, mask.kv_indices, (seen > 0) & (seen < tile * tile)),
        "full": (mask.full_kv_num_blocks, mask.full_kv_indices, seen == tile * tile),
        "partial by key": (mask.q_num_blocks, mask.q_indices, ((seen > 0) & (seen < tile * tile)).T),
        "full by key": (mask.full_q_num_blocks, mask.full_q_indices, (seen == tile * tile).T),
    }
    for name, (counts, indices, expected) in lists.items():
        for row, (count, order) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0].tolist())):
            assert order[:count] == expected[row].nonzero().flatten().tolist(), (name, row)
    assert torch.equal(
        mask.mask_mod(torch.tensor(0), torch.tensor(0), torch.arange(rows)[:, None], torch.arange(rows)), dense
    )


@settings(deadline=None, max_examples=20)
@given(MASKS, st.data())
def test_some_rows_alone_get_what_they_get_among_all(intervals: torch.Tensor, data: st.DataObject) -> None:
    """The last layer asks for scored rows only: fewer queries than keys."""
    chosen = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(intervals) - 1), min_size=1))))
    q, k, v, grad = tensors(len(intervals), 4, 2, 16, torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    whole = attend("reference", *leaves, intervals, 0.3)[chosen]
    expected = [whole, *torch.autograd.grad(whole, leaves, grad[chosen])]
    for backend in ("reference", "ranged"):
        out = attend(backend, q[chosen], k, v, intervals[chosen], 0.3)
        assert (
            worst([out.detach(), *torch.autograd.grad(out, leaves, grad[chosen])], [x.detach() for x in expected])
            <= 1e-12
        )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(deadline=None, max_examples=8)
@given(MASKS)
def test_flex_forward_matches_reference(intervals: torch.Tensor) -> None:
    q, k, v, _ = tensors(len(intervals), 4, 2, 16, torch.float32)
    exact = attend("reference", q.double(), k.double(), v.double(), intervals, 0.3)
    assert worst([attend("flex", q, k, v, intervals, 0.3)], [exact]) <= 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_notices_intervals_changed_in_place() -> None:
    intervals = torch.tensor([[0, 1, 0, 0]] * 4, dtype=torch.int32)
    q, k, v, _ = tensors(4, 1, 1, 16, torch.float32)
    attend("flex", q, k, v, intervals, 0.3)
    intervals[:, 0], intervals[:, 1] = 2, 4
    torch.testing.assert_close(attend("flex", q, k, v, intervals, 0.3), attend("reference", q, k, v, intervals, 0.3))
