"""The stand-in for torch_npu's operators refuses what the documentation forbids and what it does not model: one call
per rule, each one change away from a call that works.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ascend import operators


@pytest.fixture(scope="module")
def npu() -> Iterator[Any]:
    with operators.defined("2.7.1.post4") as defined:
        yield defined


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, dtype=dtype).expand(shape)


def attention() -> dict[str, Any]:
    """A call that works."""
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:, 4:] = True
    tensors = {"query": zeros(1, 5, 4, 8), "key": zeros(1, 7, 2, 8), "value": zeros(1, 7, 2, 8)}
    return tensors | {"head_num": 4, "input_layout": "BSND", "atten_mask": mask, "sparse_mode": 1}


def gradient() -> dict[str, Any]:
    statistics = {"softmax_max": zeros(1, 4, 5, 8), "softmax_sum": 4 + zeros(1, 4, 5, 8)}
    return attention() | statistics | {"dy": zeros(1, 5, 4, 8), "attention_in": zeros(1, 5, 4, 8)}


def call_attention(npu: Any, values: dict[str, Any]) -> Any:
    first = [values.pop(name) for name in ("query", "key", "value", "head_num", "input_layout")]
    return npu.npu_fusion_attention(*first, **values)


def call_gradient(npu: Any, values: dict[str, Any]) -> Any:
    first = [values.pop(name) for name in ("query", "key", "value", "dy", "head_num", "input_layout")]
    return npu.npu_fusion_attention_grad(*first, **values)


def all_tensors(**changes: Any) -> dict[str, Any]:
    """query, key and value of these shapes or dtypes."""
    shapes = {"query": (1, 5, 4, 8), "key": (1, 7, 2, 8), "value": (1, 7, 2, 8)} | changes.pop("shapes", {})
    return {name: zeros(*shape, **changes) for name, shape in shapes.items()}


def with_shapes(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return all_tensors(shapes=shapes)


def of_dim(dim: int) -> dict[str, Any]:
    return with_shapes(query=(1, 5, 4, dim), key=(1, 7, 2, dim), value=(1, 7, 2, dim))


def mask(*shape: int, dtype: torch.dtype = torch.bool) -> dict[str, Any]:
    return {"atten_mask": torch.zeros(shape, dtype=dtype)}


def with_blind_row() -> dict[str, Any]:
    hidden = torch.zeros(5, 7, dtype=torch.bool)
    hidden[3] = True
    return {"atten_mask": hidden}


BSH = {"query": zeros(1, 5, 32), "key": zeros(1, 7, 16), "value": zeros(1, 7, 16), "input_layout": "BSH"}
NO_MASK = {"atten_mask": None}
ATTENTION = [
    ("dtype", all_tensors(dtype=torch.float64)),
    ("dtype", all_tensors(dtype=torch.int32)),
    ("differ in dtype", {"key": zeros(1, 7, 2, 8, dtype=torch.bfloat16)}),
    ("TND", {"input_layout": "TND"}),
    ("capitals", {"input_layout": "bsnd"}),
    ("dimensions", {"input_layout": "BSH"}),
    ("dimensions", {"query": zeros(5, 4, 8)}),
    ("differ in shape", {"value": zeros(1, 7, 2, 4)}),
    ("batch sizes", with_shapes(query=(2, 5, 4, 8))),
    ("batch size 0", with_shapes(query=(0, 5, 4, 8), key=(0, 7, 2, 8), value=(0, 7, 2, 8))),
    (
        "batch size 2000001",
        NO_MASK | with_shapes(query=(2000001, 1, 4, 8), key=(2000001, 1, 2, 8), value=(2000001, 1, 2, 8)),
    ),
    ("tokens", with_shapes(key=(1, 0, 2, 8), value=(1, 0, 2, 8))),
    ("tokens", NO_MASK | with_shapes(key=(1, 1000001, 2, 8), value=(1, 1000001, 2, 8))),
    ("tokens", NO_MASK | with_shapes(query=(1, 1000001, 4, 8))),
    ("head dimensions 8 and 4", with_shapes(key=(1, 7, 2, 4), value=(1, 7, 2, 4))),
    ("head dimension 0", of_dim(0)),
    ("head dimension 769", of_dim(769)),
    ("has 4 heads", {"head_num": 2}),
    ("1 to 256", {"head_num": 0}),
    ("1 to 256", with_shapes(query=(1, 5, 258, 8)) | {"head_num": 258}),
    ("no multiple", with_shapes(key=(1, 7, 3, 8), value=(1, 7, 3, 8))),
    ("no multiple", BSH | {"head_num": 5}),
    ("no multiple", BSH | {"key": zeros(1, 7, 12), "value": zeros(1, 7, 12)}),
    ("bool or uint8", mask(5, 7, dtype=torch.float32)),
    ("is none of", mask(5, 6)),
    ("is none of", mask(1, 5, 7)),
    ("is none of", mask(1, 2, 5, 7)),
    ("hides every key", with_blind_row()),
    ("pre_tockens", mask(5, 7) | {"sparse_mode": 0, "pre_tockens": 2}),
    ("pre_tockens", mask(5, 7) | {"sparse_mode": 0, "next_tockens": 2}),
    *[("sparse_mode", {"sparse_mode": number}) for number in (-1, 2, 3, 4, 5, 6, 7, 8)],
    ("inner_precise", {"inner_precise": 2}),
    ("keep_prob", {"keep_prob": 0.9}),
    ("keep_prob", {"keep_prob": 0.0}),
    ("pse", {"pse": zeros(1, 4, 5, 7)}),
    ("padding_mask", {"padding_mask": zeros(5, 7)}),
    ("prefix", {"prefix": [3]}),
    ("TND only", {"actual_seq_qlen": [5]}),
    ("TND only", {"actual_seq_kvlen": [7]}),
    ("gen_mask_parallel", {"gen_mask_parallel": False}),
    ("sync", {"sync": True}),
    ("softmax_layout", {"softmax_layout": "TND"}),
    ("sink", {"sink": zeros(4)}),
    ("dropout_mask", {"dropout_mask": zeros(5, 7)}),
    ("seed", {"seed": 1}),
    ("offset", {"offset": 1}),
]
GRADIENT = [
    *[("required", {name: None}) for name in ("softmax_max", "softmax_sum", "attention_in")],
    *[("shape of query", {name: zeros(1, 5, 2, 8)}) for name in ("dy", "attention_in")],
    *[(f"{name} is", {name: zeros(1, 5, 4, 8, dtype=torch.bfloat16)}) for name in ("dy", "attention_in")],
    *[(f"{name} .* is not", {name: zeros(1, 4, 5, 1)}) for name in ("softmax_max", "softmax_sum")],
    *[("not float32", {name: zeros(1, 4, 5, 8, dtype=torch.float16)}) for name in ("softmax_max", "softmax_sum")],
    *[("different numbers", {name: zeros(1, 4, 5, 1) + torch.arange(8.0)}) for name in ("softmax_max", "softmax_sum")],
    ("softmax_in", {"softmax_in": zeros(1, 4, 5, 7)}),
    ("numels", {"numels": 35}),
    # The rules of the forward operator hold here too.
    ("hides every key", with_blind_row()),
    ("keep_prob", {"keep_prob": 0.5}),
    ("sparse_mode", {"sparse_mode": 2}),
    ("TND", {"input_layout": "TND"}),
    ("differ in dtype", {"key": zeros(1, 7, 2, 8, dtype=torch.bfloat16)}),
]


def test_the_calls_that_are_changed_work(npu: Any) -> None:
    assert call_attention(npu, attention())[0].shape == (1, 5, 4, 8)
    assert call_attention(npu, attention() | BSH)[0].shape == (1, 5, 32)
    assert call_attention(npu, attention() | of_dim(768))[0].shape == (1, 5, 4, 768)
    for form in ((5, 7), (1, 1, 5, 7), (1, 4, 5, 7)):
        call_attention(npu, attention() | mask(*form, dtype=torch.uint8))
    call_attention(npu, attention() | mask(5, 7) | {"sparse_mode": 0, "pre_tockens": 4, "next_tockens": 6})
    # Without a mask everything attends, whatever the rest says.
    call_attention(npu, attention() | NO_MASK | {"sparse_mode": 0, "pre_tockens": 0, "next_tockens": 0})
    assert len(call_gradient(npu, gradient())) == 5


@pytest.mark.parametrize(("message", "change"), ATTENTION)
def test_attention_refuses(npu: Any, message: str, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=message):
        call_attention(npu, attention() | change)


@pytest.mark.parametrize(("message", "change"), GRADIENT)
def test_gradient_refuses(npu: Any, message: str, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=message):
        call_gradient(npu, gradient() | change)


HALF = torch.bfloat16
NORM = [
    ("input is", (zeros(3, 8, dtype=torch.float64), zeros(8, dtype=torch.float64))),
    ("gamma", (zeros(3, 8), zeros(8, dtype=HALF))),
    ("gamma", (zeros(3, 8, dtype=HALF), zeros(8, dtype=torch.float16))),
    ("dimensions", (zeros(8), zeros(8))),
    ("dimensions", (zeros(*[1] * 8, 8), zeros(8))),
    ("not the last", (zeros(3, 8), zeros(3))),
    ("not the last", (zeros(3, 8), zeros(1, 3, 8))),
]
NORM_GRADIENT = [
    ("dy", (zeros(3, 4), zeros(3, 8), zeros(8), zeros(3, 1))),
    ("dy", (zeros(3, 8, dtype=HALF), zeros(3, 8), zeros(8), zeros(3, 1))),
    ("rstd", (zeros(3, 8), zeros(3, 8), zeros(8), zeros(3))),
    ("rstd", (zeros(3, 8, dtype=HALF), zeros(3, 8, dtype=HALF), zeros(8), zeros(3, 1, dtype=HALF))),
    ("gamma", (zeros(3, 8), zeros(3, 8), zeros(4), zeros(3, 1))),
]
SWIGLU = [
    ("input is", (torch.zeros(3, 8, dtype=torch.float64),)),
    ("contiguous", (torch.zeros(8, 3).t(),)),
    ("contiguous", (torch.zeros(3, 16)[:, ::2],)),
    ("empty", (torch.zeros(0, 8),)),
    ("even", (torch.zeros(3, 7),)),
    ("dim=2", (torch.zeros(3, 8), 2)),
]
SWIGLU_GRADIENT = [
    ("grad_output", (torch.zeros(3, 8), torch.zeros(3, 8))),
    ("grad_output is", (torch.zeros(3, 4, dtype=HALF), torch.zeros(3, 8))),
    ("grad_output is not contiguous", (zeros(3, 4), torch.zeros(3, 8))),
    ("input is not contiguous", (torch.zeros(3, 4), torch.zeros(8, 3).t())),
]
X, R = zeros(6, 1, 3, 8), zeros(6, 1, 1, 8)
ROTARY = [
    ("rotary_mode", (X, R, R, "interleave")),
    ("rotate", (X, R, R, "half", zeros(8, 8))),
    ("float32 only", (X.double(), R.double(), R.double())),
    ("four dimensions", (zeros(6, 3, 8), zeros(6, 1, 8), zeros(6, 1, 8))),
    ("even", (zeros(6, 1, 3, 7), zeros(6, 1, 1, 7), zeros(6, 1, 1, 7))),
    ("below 896", (zeros(6, 1, 3, 896), zeros(6, 1, 1, 896), zeros(6, 1, 1, 896))),
    ("differ in shape", (X, R, zeros(6, 1, 3, 8))),
    ("any layout", (X, zeros(5, 1, 1, 8), zeros(5, 1, 1, 8))),
    ("any layout", (X, zeros(6, 1, 1, 4), zeros(6, 1, 1, 4))),
    ("any layout", (zeros(6, 1, 1000, 8), R, R)),
    ("any layout", (zeros(6, 1000, 3, 8), R, R)),
    ("between -1 and 1", (X, R + 1.2, R)),
]
ROTARY_GRADIENT = [
    ("not like input", (zeros(6, 1, 3, 4), X, R, R)),
    ("not like input", (X.bfloat16(), X, R, R)),
    ("1024", (zeros(6, 40, 30, 8), zeros(6, 40, 30, 8), R, R)),
    ("rotary_mode", (X, X, R, R, "interleave")),
]
LAYERS = {
    "npu_rms_norm": NORM,
    "npu_rms_norm_backward": NORM_GRADIENT,
    "npu_swiglu": SWIGLU,
    "npu_swiglu_backward": SWIGLU_GRADIENT,
    "npu_rotary_mul": ROTARY,
    "npu_rotary_mul_backward": ROTARY_GRADIENT,
}


@pytest.mark.parametrize(
    ("operator", "message", "call"), [(name, *rule) for name, rules in LAYERS.items() for rule in rules]
)
def test_layers_refuse(npu: Any, operator: str, message: str, call: tuple[Any, ...]) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(npu, operator)(*call)


def test_forms_of_the_layers_that_are_documented_work(npu: Any) -> None:
    """Positions in front, many of them, are the layout SBND, whose batches and heads count."""
    long = zeros(20_000, 1, 2, 8)
    assert npu.npu_rotary_mul(long, zeros(20_000, 1, 1, 8), zeros(20_000, 1, 1, 8)).shape == long.shape
    for shape in ((2, 3, 6, 8), (2, 6, 3, 8)):
        form = [size if size == 6 or number == 3 else 1 for number, size in enumerate(shape)]
        assert npu.npu_rotary_mul(zeros(*shape), zeros(*form), zeros(*form)).shape == shape
    assert npu.npu_rms_norm(zeros(2, 3, 4, dtype=HALF), zeros(3, 4))[1].shape == (2, 1, 1)
    assert npu.npu_swiglu(torch.zeros(4, 3), 0).shape == (2, 3)
