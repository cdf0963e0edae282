"""Attention on Ascend NPUs over the stand-in for torch_npu's operators, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.attention import npu, plan, verify
from megatron_videogpt.attention.verify import NAMES, distances, errors
from megatron_videogpt.sequence.intervals import dense_mask
from megatron_videogpt.sequence.layout import layout, training_shape
from tests.ascend import operators
from tests.random_layouts import COUNT, Case, over_time, random_case

HEAD_DIMS = (64, 96, 128)
FEW = plan.Costs(call=400, key=8, mask=0.06)
"""Small rows in many rectangles; by the costs of a device they would be one."""


@pytest.fixture
def defined() -> Iterator[None]:
    with operators.defined("2.7.1.post4"):
        yield


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(npu, "costs", lambda heads, head_dim: FEW)
    npu._kept.cache_clear()
    yield
    npu._kept.cache_clear()


def compare(backend: str, case: Case, dtype: torch.dtype, seed: int) -> int:
    """float32 to 1e-5 of the largest value; bf16 to twice the error of torch's own attention, and to the rounding of
    the result beside it: where theirs is small by chance, a number that lies between two of bf16 can be rounded to the
    other one.  Returns how many of output and gradients need that rounding.
    """
    inputs = case.tensors(HEAD_DIMS[seed % 3], dtype, seed=seed)
    found, torchs = distances(backend, inputs, case.intervals[case.kept])
    for name, error, theirs in zip(NAMES, found, torchs):
        most = 1e-5 if dtype == torch.float32 else 2 * theirs + torch.finfo(dtype).eps / 2
        assert error <= most, (seed, name, error, theirs)
    return sum(error > 2 * theirs for error, theirs in zip(found, torchs))


def test_float32_equals_the_oracle_on_random_layouts(defined: None, many: None) -> None:
    for seed, case in enumerate((*(random_case(seed, 150) for seed in range(COUNT)), over_time())):
        compare("npu", case, torch.float32, seed)
        compare("npu_dense", case, torch.float32, seed)


@pytest.mark.parametrize("version", operators.VERSIONS)
def test_bf16_in_each_version_is_as_good_as_torch_is(version: str, many: None) -> None:
    rounded, seeds = 0, range(operators.VERSIONS.index(version), COUNT, 20)
    with operators.defined(version):
        for seed in seeds:
            for backend in ("npu", "npu_dense"):
                rounded += compare(backend, random_case(seed, 150), torch.bfloat16, seed)
    assert rounded <= 1, "of 80 numbers"


@pytest.mark.long
def test_bf16_is_as_good_as_torch_is_on_random_layouts(defined: None, many: None) -> None:
    rounded = sum(compare("npu", random_case(seed), torch.bfloat16, seed) for seed in range(COUNT))
    assert rounded <= 8, "of 800 numbers"


def test_the_plan_covers_each_pair_once_and_no_row_is_blind() -> None:
    calls, blind = 0, 0
    for seed in range(COUNT):
        case = random_case(seed, 200)
        table = case.intervals[case.kept]
        count, written = torch.zeros(len(table), len(case.intervals), dtype=torch.int64), torch.zeros(len(table))
        boxes = plan.covering(table, FEW)
        for box in boxes:
            part = count[box.row0 : box.row1, box.key0 : box.key1]
            part += 1 if box.mask is None else box.mask
            assert box.mask is None or (box.mask.dtype == torch.bool and box.mask.any(1).all())
            assert box.first == (written[box.row0 : box.row1].sum() == 0)
            written[box.row0 : box.row1] = 1
        assert torch.equal(count, dense_mask(table, len(case.intervals)).long())
        before = plan._boxes(plan.table_of(table), FEW)
        blind += sum(box.mask is not None and not bool(box.mask.any(1).all()) for box in before)
        calls += len(boxes)
    assert calls > COUNT and blind > 5, "layouts that show nothing"


def one_case(seed: int = 5) -> tuple[list[Tensor], Tensor]:
    case = random_case(seed, 400)
    return case.tensors(64, torch.float32), case.intervals[case.kept]


def merged_rows() -> tuple[list[Tensor], Tensor]:
    """Rows of several rectangles each, with masks."""
    table = layout(training_shape((2, 3, 1, 4), (3, 4))).intervals
    assert not all(box.first for box in plan.covering(table, FEW))
    return Case(table, 4, 2, torch.arange(len(table))).tensors(64, torch.float32), table


def worst(inputs: list[Tensor], table: Tensor) -> float:
    return max(errors("npu", inputs, table).found)


def test_planted_faults_are_found(defined: None, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, table = merged_rows()
    assert worst(inputs, table.clone()) < 1e-5
    real, merge = npu.on_device, npu._merge

    def inverted(*arguments: Any) -> tuple[npu.Call, ...]:
        return tuple(replace_mask(call) for call in real(*arguments))

    def replace_mask(call: npu.Call) -> npu.Call:
        return call if call.hides is None else call._replace(hides=~call.hides)

    with monkeypatch.context() as patch:
        patch.setattr(npu, "on_device", inverted)
        with pytest.raises(RuntimeError, match="hides every key"):
            worst(inputs, table.clone())
    with monkeypatch.context() as patch:
        # The statistics of the last rectangle instead of the merged ones.
        def last(rows: npu.Results, found: npu.Results, first: bool) -> None:
            merge(rows, found, first)
            for old, new in zip(rows[1:], found[1:]):
                old.copy_(new)

        patch.setattr(npu, "_merge", last)
        assert worst(inputs, table.clone()) > 1e-2
    with monkeypatch.context() as patch:
        patch.setattr(plan, "_sighted", lambda boxes: boxes)
        with pytest.raises(RuntimeError, match="hides every key"):
            for seed in range(COUNT):
                worst(*one_case(seed))


def test_the_start_up_comparison_merges(defined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a device's costs its rows are one rectangle, in which no fault of merging shows."""
    cpu, table = torch.device("cpu"), verify.mask("npu")
    own, fine = verify.plans("npu", table, cpu)
    assert own is None and len(plan.covering(table, npu.costs(2, 64))) == 1
    assert len(fine) > 5 and not all(call.box.first for call in fine)
    assert 0 < sum(call.hides is None for call in fine) < len(fine)
    assert verify.plans("npu_dense", table, cpu) == (None,)
    assert verify.problem("npu", cpu, torch.float32, 64) == ""
    merge = npu._merge

    def unmerged(rows: npu.Results, found: npu.Results, first: bool) -> None:
        merge(rows, found, True)

    monkeypatch.setattr(npu, "_merge", unmerged)
    assert "output by" in verify.problem("npu", cpu, torch.float32, 64)


def test_views_are_taken_as_they_are_and_masks_once_a_row(defined: None, many: None, monkeypatch: Any) -> None:
    (q, k, v, _), table = merged_rows()
    made: list[int] = []
    real = npu.on_device
    monkeypatch.setattr(npu, "on_device", lambda *arguments: made.append(1) or real(*arguments))
    out = npu.attend(q, k, v, table, 0.1)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    assert not any(x.is_contiguous() for x in strided)
    assert torch.equal(npu.attend(*strided, table, 0.1), out)
    assert len(made) == 1


@pytest.mark.long
@pytest.mark.parametrize(("heads", "ratio", "megabytes"), [(32, 1.15, 250), (4, 1.35, 600)])
def test_the_largest_rows_cost_what_is_documented(heads: int, ratio: float, megabytes: int) -> None:
    """80 frames of 242 tokens in 80 and in 33 clips."""
    for clips in ((1,) * 80, (3,) * 15 + (2,) * 17 + (1,)):
        table = layout(training_shape(clips, (12, 20))).intervals
        assert len(table) == 38_478
        wide = table.long()
        attended = int((wide[:, 1::2] - wide[:, ::2]).clip(min=0).sum())
        boxes = plan.covering(table, npu.costs(heads, 96))
        pairs = sum((box.row1 - box.row0) * (box.key1 - box.key0) for box in boxes)
        assert pairs <= ratio * attended
        assert sum(box.mask.numel() for box in boxes if box.mask is not None) <= megabytes * 1e6
