"""Packed samples of the ranged backend: their cut into calls without a search, and their backward in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.attention import chunks, ranged
from megatron_videogpt.attention.plan import Costs, plan
from megatron_videogpt.sequence.intervals import shift
from megatron_videogpt.sequence.layout import layout, training_shape

from .test_attention import MASKS, check_cover


@settings(deadline=None, max_examples=30)
@given(st.lists(MASKS, min_size=1, max_size=5), st.sampled_from([0.0, 5.0, 100.0, 1000.0]))
def test_packed_samples_that_are_not_cut_cost_a_call_more_at_most(masks: list[torch.Tensor], call: float) -> None:
    """Against the search over all groups, which takes milliseconds."""
    row = torch.cat([shift(mask, sum(map(len, masks[:number]))) for number, mask in enumerate(masks)])
    costs = Costs(call=call, key=2.0, mask=0.06)
    check_cover(row, plan(row, costs))
    starts = [0, *(1 + (row[1:] != row[:-1]).any(dim=1).nonzero()[:, 0]).tolist(), len(row)]
    edges, groups = np.array(starts), row[starts[:-1]].numpy().astype(np.int64)
    cost = chunks.cut_into_chunks(edges, groups, costs)[1]
    best = chunks._cheapest(edges, *(chunks.side_of(groups[:, i], groups[:, i + 1]) for i in (0, 2)), costs)[1]
    # What the search does not cut computes two calls' worth in vain at most, at 1.4 times the time of a pair where
    # rows are few and 6 % more under a mask, and could have shared its call with a neighbour.
    most = len(chunks._units(edges, groups, costs)) * (2 * 1.4 * 1.06 + 1) * call
    assert best <= cost * (1 + 1e-9) and cost <= (best + most) * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_rectangles_go_backward_as_exactly_as_large_ones(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """In float32 or in half precision: both near float64, the first one nearer."""
    torch.manual_seed(0)
    intervals = layout(training_shape((2, 1, 3), (2, 2))).intervals
    exact = [torch.randn(len(intervals), 2, 32, dtype=torch.float64).to(dtype).double() for _ in range(4)]

    def gradients(kind: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (x.detach().clone().to(kind).requires_grad_() for x in exact[:3])
        ranged.attend(q, k, v, intervals, 0.2).backward(exact[3].to(kind))
        return [x.grad.double() for x in (q, k, v)]

    truth, small = gradients(torch.float64), gradients(dtype)
    monkeypatch.setattr(ranged, "_SMALL_PAIRS", 0)
    large = gradients(dtype)
    errors = [[float((a - b).norm() / b.norm()) for a, b in zip(found, truth)] for found in (small, large)]
    assert max(errors[0]) < 1e-2 and max(errors[1]) < 2e-2 and sum(errors[0]) <= 1.05 * sum(errors[1]), errors
