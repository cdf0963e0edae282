"""Fused layers on Ascend NPUs, over the stand-in for torch_npu's operators, against those in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.errors import UserError
from megatron_videogpt.model import fused, fused_npu, fused_torch
from tests.ascend import operators

EPS = 1e-5
EXACT = 1e-6
"""Of float32, relative to the largest value."""
ROUNDINGS = {"norm": 2, "other": 1}
"""By how many roundings bf16 may differ: torch's norm rounds before it multiplies, torch_npu's does not."""


@pytest.fixture(params=operators.VERSIONS)
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    with operators.defined(request.param):
        yield request.param


@pytest.fixture
def defined() -> Iterator[None]:
    with operators.defined("2.7.1.post4"):
        yield


def results(run: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of a function and, for one gradient of them that is always the same, the gradients of its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    noise = torch.Generator().manual_seed(1)
    torch.autograd.backward(outputs, [torch.randn(x.shape, generator=noise).to(x.dtype) for x in outputs])
    assert all(x.is_contiguous() for x in outputs)
    return [*(x.detach() for x in outputs), *(x.grad for x in leaves)]


def compare(run: Callable[..., Any], inputs: list[Tensor], roundings: int = 1) -> None:
    """torch_npu's results are torch's: to `EXACT` in float32, in bf16 within so many roundings of the value."""
    found, wanted = results(lambda *x: run(*x, "npu"), inputs), results(lambda *x: run(*x, "torch"), inputs)
    step = roundings * torch.finfo(torch.bfloat16).eps
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        difference, size = (a.double() - b.double()).abs(), b.double().abs()
        # What is a difference of larger numbers is rounded as these are.
        limit = EXACT * size.max() if a.dtype == torch.float32 else step * (size + size.max() / 8)
        assert (difference <= limit).all(), (number, float(difference.max()), float(size.max()))


def strided(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows that lie further apart than they are long."""
    return torch.randn(rows, 1, width + 8).to(dtype)[..., :width]


DTYPES = (torch.float32, torch.bfloat16)
# Hidden sizes of the recipes and of Phi-3-mini, and one that is odd.
WIDTHS = (1, 33, 96, 768, 3072)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(version: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for width in WIDTHS:
        for x in (torch.randn(17, 1, width).to(dtype), strided(5, width, dtype), torch.randn(1, 1, width).to(dtype)):
            # At width 1 the gradient is a difference of equal numbers.
            weight = (1 + 0.3 * torch.randn(width)).to(dtype)
            inputs = [x, weight] if width > 1 else [torch.cat([x, x + 1], -1), torch.cat([weight, weight])]
            compare(lambda x, w, kernels: fused.rms_norm(x, w, EPS, kernels), inputs, ROUNDINGS["norm"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(version: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for width in (2, 66, 416, 2048):
        for x in (torch.randn(17, 1, width).to(dtype), strided(5, width, dtype), torch.randn(1, 1, width).to(dtype)):
            compare(fused.swiglu, [x], ROUNDINGS["other"])


def positions(tokens: int, width: int) -> Tensor:
    """Angles of positions up to 20,000 with RoPE's frequencies, float32 ``[tokens, width]``."""
    frequencies = 10000.0 ** -(torch.arange(0, width, 2) / width)
    half = torch.linspace(0, 20_000, tokens).round()[:, None] * frequencies
    return torch.cat([half, half], dim=-1)


def chosen_rows(tokens: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(0, tokens, 3)
    place = torch.full((tokens,), -1, dtype=torch.int32)
    place[rows] = torch.arange(len(rows), dtype=torch.int32)
    return rows, place


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "queries", "width"), [(1, 1, 2), (2, 2, 24), (4, 1, 96), (1, 8, 64), (8, 4, 128)])
def test_rotary_cut(defined: None, dtype: torch.dtype, groups: int, queries: int, width: int) -> None:
    torch.manual_seed(0)
    tokens, slots = 50, queries + 2
    rows, place = chosen_rows(tokens)
    plain = torch.randn(tokens, groups, slots, width).to(dtype)
    apart = strided(tokens, groups * slots * width, dtype)[:, 0].unflatten(-1, (groups, slots, width))
    angles = positions(tokens, width)
    for joint in (plain, apart):
        compare(lambda x, kernels: fused.split_rotary(x, angles, kernels), [joint])
        compare(lambda x, kernels: fused.split_rotary(x, angles, kernels, rows, place), [joint])
        compare(lambda x, kernels: fused.split_rotary(x, None, kernels), [joint])


def test_rotary_cut_in_each_version(version: str) -> None:
    torch.manual_seed(0)
    angles, joint = positions(40, 32), torch.randn(40, 2, 4, 32).bfloat16()
    compare(lambda x, kernels: fused.split_rotary(x, angles, kernels), [joint])


def test_angles_are_not_rounded(defined: None) -> None:
    """bf16 angles are wrong by radians at position 20,000: what is turned is float32."""
    angles, joint = positions(64, 32), torch.ones(64, 1, 3, 32, dtype=torch.bfloat16)
    exact = fused_torch.split_rotary(joint.double(), angles, None, None)[0]
    found = fused.split_rotary(joint, angles, "npu")[0]
    assert (found - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_limits_of_the_operators(defined: None) -> None:
    for width in (896, 33):
        joint = torch.randn(2, 1, 3, width)
        with pytest.raises(UserError, match=f"heads of {width} channels"):
            fused.split_rotary(joint, torch.zeros(2, width), "npu")


def test_what_is_kept(defined: None) -> None:
    """Inputs, and one number a row: nothing else."""
    x = torch.randn(6, 1, 64, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        fused.rms_norm(x, weight, EPS, "npu")
        assert sum(t.nbytes for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())) == 6 * 4
        kept.clear()
        fused.swiglu(x, "npu")
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]
        kept.clear()
        angles = torch.randn(6, 8)
        fused.split_rotary(x.view(6, 2, 4, 8), angles, "npu")
        assert [t.data_ptr() for t in kept] == [angles.data_ptr()]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_model_with_them(recompute: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored rows, recomputation and all: the loss and gradients of torch's operations."""
    from tests.unit.test_fused import trained

    loss, wanted = trained("torch", recompute, monkeypatch)
    other, found = trained("npu", recompute, monkeypatch)
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_the_log_says_what_computes_what() -> None:
    from megatron_videogpt.model.layers import describe_kernels

    plain = config_from_dict({}).model
    assert describe_kernels("npu", plain) == "npu for norms, SwiGLU and rotary positions (torch_npu's operators)"
    other = config_from_dict({"model": {"norm": "layer", "activation": "gelu", "biases": True}}).model
    assert describe_kernels("npu", other) == (
        "npu for rotary positions (torch_npu's operators), torch for LayerNorm and GELU and biases"
    )


def test_there_are_the_same_functions_as_in_torch() -> None:
    for name in ("rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward", "split_rotary", "split_rotary_backward"):
        assert callable(getattr(fused_npu, name)) and callable(getattr(fused_torch, name))
