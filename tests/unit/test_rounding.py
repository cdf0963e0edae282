"""The allowance for rounding in attention: a processor that adds one product after the other stays within it, a kernel
that is wrong by 1 % does not.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_videogpt.attention import ranged, verify
from megatron_videogpt.attention.rounding import allowances
from megatron_videogpt.sequence.intervals import dense_mask
from megatron_videogpt.sequence.layout import layout, pack, training_shape
from tests.random_layouts import Case, random_case
from tests.unit.test_attention_choice import _off

Large = tuple[list[Tensor], Tensor]


@pytest.fixture
def large() -> Large:
    """Inputs with scores of thousands, and their intervals."""
    intervals = pack([layout(training_shape((1, 2, 2), (3, 3)))] * 2, 7).intervals
    return [x * 20 for x in Case(intervals, 2, 2, torch.arange(len(intervals))).tensors(32, torch.float32)], intervals


def one_by_one(a: Tensor, b: Tensor, backwards: bool = False) -> Tensor:
    """``a @ b`` that rounds after every product and every sum."""
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=a.dtype)
    for place in sorted(range(a.shape[-1]), reverse=backwards):
        total = total + a[..., place, None] * b[..., place, None, :]
    return total


def other_processor(inputs: list[Tensor], mask: Tensor, scale: float) -> list[Tensor]:
    """Output and gradients as FlashAttention computes them (equal numbers of heads), with sums in another order in the
    backward pass.
    """
    q, k, v, grad = (x.transpose(0, 1) for x in inputs)

    def scores(backwards: bool) -> Tensor:
        return (one_by_one(q, k.mT, backwards) * scale).masked_fill(~mask, float("-inf"))

    sums = scores(False).logsumexp(-1, keepdim=True)
    out = one_by_one(scores(False).softmax(-1), v)
    weights = torch.exp(scores(True) - sums)
    to_scores = scale * weights * (one_by_one(grad, v.mT) - (grad * out).sum(-1, keepdim=True))
    return [
        x.transpose(0, 1)
        for x in (out, one_by_one(to_scores, k), one_by_one(to_scores.mT, q), one_by_one(weights.mT, grad))
    ]


def test_a_processor_that_adds_one_by_one_is_right(large: Large) -> None:
    inputs, intervals = large
    mask, scale, doubles = dense_mask(intervals, len(intervals)), 32**-0.5, [x.double() for x in inputs]
    exact = verify._results(lambda q, k, v: verify.attend("reference", q, k, v, intervals, scale), doubles)
    found = verify._distance(other_processor(inputs, mask, scale), exact)
    most = allowances(doubles, mask, scale, torch.float32)
    assert all(error < limit / 2 for error, limit in zip(found, most)), (found, most)
    # Three times what rounding happens to do on the processor at hand is no limit for another.
    assert found[3] > 3 * verify.errors("reference", inputs, intervals).found[3]


def test_an_error_of_a_hundredth_is_found_among_large_scores(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(error <= most for error, most in zip(*verify.errors("ranged", *large)))
    for which in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(ranged, "attend", _off(which))
            found, allowed = verify.errors("ranged", *large)
        assert found[which] > 5 * allowed[which]


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-13), (torch.float32, 5e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
def test_the_allowance_leaves_room_and_no_more(dtype: torch.dtype, most: float) -> None:
    for seed in range(0, 200, 20):
        case = random_case(seed)
        inputs, intervals = case.tensors(32, dtype, seed=seed), case.intervals[case.kept]
        allowed = allowances([x.double() for x in inputs], dense_mask(intervals, len(case.intervals)), 32**-0.5, dtype)
        assert max(allowed) < most
        if dtype != torch.float64:
            assert all(
                error < limit for error, limit in zip(verify.errors("ranged", inputs, intervals).found, allowed)
            ), seed
