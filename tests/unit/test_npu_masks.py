"""Attention on Ascend NPUs, over the stand-in for torch_npu's operators, on the masks of every objective."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_videogpt.attention import npu, npu_dense
from megatron_videogpt.attention import plan as plans
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.sequence.layout import layout, training_shape
from megatron_videogpt.sequence.row import Row
from tests.ascend import operators
from tests.unit.test_npu_attention import FEW

HEADS, GROUPS, WIDTH = 4, 2, 16
EXACT = 1e-5


@pytest.fixture(autouse=True)
def defined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operators, and small rows in many rectangles; by the costs of a device they would be one."""
    monkeypatch.setattr(npu, "costs", lambda heads, head_dim: FEW)
    npu._kept.cache_clear()
    with operators.defined("2.7.1.post4"):
        yield
    npu._kept.cache_clear()


def next_clip() -> Row:
    """A prefix, given frames, a dropped prefix and padding."""
    from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion

    objective = NextClipDiffusion(2, 16, no_prefix=torch.zeros(0, 5))
    facts = [((2, 1, 3), 3, 2, False), ((1, 1), 0, 0, False), ((2, 2), 2, 0, True), ((1, 2, 1), 0, 1, False)]
    samples = [
        Sample(
            key,
            str(key),
            torch.randn(sum(clips), 4, 4, 6),
            None,
            clips,
            condition=torch.zeros(prefix, 5) if prefix else None,
            given=given,
            dropped=dropped,
        )
        for key, (clips, prefix, given, dropped) in enumerate(facts)
    ]
    return objective.prepare(samples, 16)


def next_block() -> Row:
    """Two lengths, with a class before them, of which one is dropped."""
    from megatron_videogpt.objective.next_block.objective import NextBlock
    from megatron_videogpt.objective.next_block.vocabulary import Vocabulary
    from tests.unit.test_next_block import LEVELS, sample_of

    objective = NextBlock(Vocabulary("hybrid", 4, 60, 3), LEVELS, (2, 1, 2), 1, 4)
    told = torch.tensor([2])
    samples = [sample_of((2, 2, 4), 1, condition=told), sample_of((4, 4, 4), 2, condition=told, dropped=True)]
    return objective.prepare(samples, 8)


def frame_prompt() -> Row:
    """Prompts of several lengths behind a class."""
    from megatron_videogpt.objective.frame_prompt.objective import FramePromptDiffusion

    objective = FramePromptDiffusion(2, 8, (1, 3, 4), 2, no_prefix=torch.zeros(0, dtype=torch.int64))
    samples = [
        Sample(key, "", torch.randn(6, 4, 4, 6), None, (6,), condition=torch.tensor([2]), dropped=key == 2)
        for key in range(4)
    ]
    return objective.prepare(samples, 8)


def factorised(name: str) -> Row:
    """Masks in space, to the prompt and in time, the latter in orders of their own."""
    from megatron_videogpt.objective.frame_prompt.factorised.rows import assemble
    from tests import factorised_prompt as small

    variant = small.VARIANTS[name]
    return assemble(small.rows_of(variant)[0], 8, variant, 2)


ROWS = {
    "next clip": next_clip,
    "next block": next_block,
    "frame prompt": frame_prompt,
    **{f"factorised, {name}": lambda name=name: factorised(name) for name in ("with text", "full, first frame")},
}


def tensors(queries: int, tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and a gradient of the output."""
    noise = torch.Generator().manual_seed(0)
    shapes = [(queries, HEADS), (tokens, GROUPS), (tokens, GROUPS), (queries, HEADS)]
    return [torch.randn(*shape, WIDTH, generator=noise).to(dtype) for shape in shapes]


def results(backend: str, inputs: list[Tensor], mask: Any) -> list[Tensor]:
    """Output and gradients of q, k and v, in the mask's order and back."""
    from megatron_videogpt.model.core_attention import attend_in_order

    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out = attend_in_order(backend, *leaves, mask, WIDTH**-0.5)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def check(masks: list[tuple[Any, int, int]]) -> None:
    """Backends against the oracle in float64.  masks: as a pass has them, with queries and tokens."""
    for mask, queries, tokens in masks:
        inputs = tensors(queries, tokens)
        exact = results("reference", [x.double() for x in inputs], mask)
        for backend in ("npu", "npu_dense"):
            for found, wanted in zip(results(backend, inputs, mask), exact, strict=True):
                assert (found.double() - wanted).abs().max() <= EXACT * wanted.abs().max().clamp(min=0.1), backend


@pytest.mark.parametrize("name", ROWS)
def test_masks_of_every_objective(name: str) -> None:
    from megatron_videogpt.model.inputs import ordered

    row = ROWS[name]()
    length, rows = row.length, row.scored_rows
    assert len(rows) < length
    masks = [ordered(mask, cached=False) for mask in row.masks]
    assert ("factorised" in name) == any(mask.order is not None for mask in masks)
    scored = [mask.of_rows(stored.intervals[rows]) for mask, stored in zip(masks, row.masks)]
    check([*((mask, length, length) for mask in masks), *((mask, len(rows), length) for mask in scored)])


def test_text_beside_a_row() -> None:
    """Keys of a text of another length than the row."""
    row = factorised("with text")
    seen, words = row.context["seen"].value, len(row.context["words"].value)
    from megatron_videogpt.model.inputs import OrderedMask

    check([(OrderedMask(seen.int()), row.length, words)])


class Largest(TorchDispatchMode):
    """The largest tensor that any operation takes or gives."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return out


def test_no_matrix_of_rows_times_keys() -> None:
    """But with `npu_dense`, which shows that one would be seen."""
    table = layout(training_shape((1,) * 6 + (3, 4, 3), (5, 8))).intervals
    length = len(table)
    inputs = [x.requires_grad_() for x in tensors(length, length)[:3]]
    for kernel, matrix in ((npu, False), (npu_dense, True)):
        with Largest() as seen:
            kernel.attend(*inputs, table.clone(), 0.1).sum().backward()
        assert (seen.numbers >= length * length) == matrix
        assert matrix or seen.numbers < length * length / 4, seen.numbers / length**2


def test_short_rows_are_one_dense_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the costs that are assumed of a device."""
    monkeypatch.undo()
    table = layout(training_shape((1, 1, 1), (6, 8))).intervals
    (box,) = plans.covering(table, npu.costs(32, 96))
    assert (box.row1 - box.row0, box.key1 - box.key0) == (len(table), len(table))
