"""Faults planted in the text of the layers and of the attention for Ascend NPUs: each fails a comparison."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megatron_videogpt.attention import npu
from megatron_videogpt.model import fused, fused_npu
from tests.ascend import operators
from tests.unit import test_fused_npu as layers
from tests.unit import test_npu_attention as attention

pytestmark = pytest.mark.long


def norm(dtype: torch.dtype) -> None:
    """Rows whose squares are small enough for epsilon to show."""
    inputs = [0.1 * torch.randn(9, 1, 32).to(dtype), torch.randn(32).to(dtype)]
    layers.compare(lambda x, w, kernels: fused.rms_norm(x, w, layers.EPS, kernels), inputs, 2)


def swiglu(dtype: torch.dtype) -> None:
    layers.compare(fused.swiglu, [layers.strided(7, 24, dtype)])


def gradient_of_swiglu(dtype: torch.dtype) -> None:
    """A gradient whose rows lie apart."""
    layers.compare(lambda x, kernels: fused.swiglu(x, kernels) * 1.0, [torch.randn(7, 1, 24).to(dtype)])
    x = torch.randn(7, 24).to(dtype)
    fused._module("npu").swiglu_backward(torch.randn(7, 20).to(dtype)[:, :12], x)


def rotary(dtype: torch.dtype) -> None:
    rows, place = layers.chosen_rows(30)
    joint, angles = torch.randn(30, 2, 4, 16).to(dtype), layers.positions(30, 16)
    layers.compare(lambda x, kernels: fused.split_rotary(x, angles, kernels), [joint])
    layers.compare(lambda x, kernels: fused.split_rotary(x, angles, kernels, rows, place), [joint])


def attends(dtype: torch.dtype) -> None:
    inputs, table = attention.merged_rows()
    assert attention.worst([x.to(dtype) for x in inputs], table.clone()) < 1e-5


FP32, BF16 = torch.float32, torch.bfloat16
LAYERS: dict[str, tuple[str, str, Callable[[torch.dtype], None], torch.dtype]] = {
    "an epsilon that is left out": ("npu_rms_norm(x, weight, eps)", "npu_rms_norm(x, weight)", norm, FP32),
    "a gradient that is handed on": ("return grad_x, grad_weight", "return grad, grad_weight", norm, FP32),
    "an input that is not contiguous": ("npu_swiglu(x.contiguous()", "npu_swiglu(x", swiglu, FP32),
    "a gradient that is not contiguous": ("(grad.contiguous(), x", "(grad, x", gradient_of_swiglu, FP32),
    "turned further instead of back": ("sign * wide.sin()", "wide.sin()", rotary, FP32),
    "angles in 16 bits": ("x.float().reshape", "x.reshape", rotary, BF16),
    "keys' gradients not turned back": ("= _turned(grad_k, turns)", "= grad_k", rotary, FP32),
    "values turned, too": ("value = joint[:, :, -1]", "value = joint[:, :, -2]", rotary, FP32),
    "angles of other rows": ("theirs = turns[0].index_select(0, rows)", "theirs = turns[0][: len(rows)]", rotary, FP32),
    "no zeros for rows that are not chosen": ("queries.zero_()", "queries.fill_(1.0)", rotary, FP32),
}
ATTENTION: dict[str, tuple[str, str]] = {
    "an inverted mask": ("~box.mask.to(", "box.mask.to("),
    "a scale that is left out of the gradients": ("scale_value=ctx.scale", "scale_value=1.0"),
    "a keyword of the forward operator": ("scale_value=ctx.scale", "scale=ctx.scale"),
    "gradients that replace each other": ("cut(x).add_(part[0])", "cut(x).copy_(part[0])"),
    "every rectangle a first one": (
        "(part[0], part_most, part_total), call.box.first)",
        "(part[0], part_most, part_total), True)",
    ),
    "sums that are not brought to one maximum": ("    total.mul_(torch.exp(most - larger))\n", ""),
    "a maximum that is not kept": ("    most.copy_(larger)\n", ""),
    "one statistic instead of eight": ("_REPEATS = 8", "_REPEATS = 1"),
}


def mutated(module: ModuleType, old: str, new: str) -> ModuleType:
    """A copy of a module with one text in place of another, which it has."""
    path = Path(str(module.__file__))
    source = path.read_text(encoding="utf-8")
    assert old in source, f"{path} has no {old!r} any more"
    copy = ModuleType(module.__name__)
    copy.__package__, copy.__file__ = module.__package__, module.__file__
    exec(compile(source.replace(old, new), str(path), "exec"), copy.__dict__)
    return copy


@pytest.fixture(autouse=True)
def defined() -> Iterator[None]:
    torch.manual_seed(0)
    with operators.defined("2.7.1.post4"):
        yield


def fails(check: Callable[[torch.dtype], None], dtype: torch.dtype) -> bool:
    try:
        check(dtype)
    except (AssertionError, RuntimeError):
        return True
    return False


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, check, dtype = LAYERS[name]
    assert not fails(check, dtype)
    copy, real = mutated(fused_npu, old, new), fused._module
    monkeypatch.setattr(fused, "_module", lambda kernels: copy if kernels == "npu" else real(kernels))
    assert fails(check, dtype)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(heads: int, head_dim: int) -> Any:
        return attention.FEW

    with monkeypatch.context() as patch:
        patch.setattr(npu, "costs", few)
        assert not fails(attends, FP32)
    copy = mutated(npu, *ATTENTION[name])
    copy.costs = few  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, npu.__name__, copy)
    assert fails(attends, FP32)
