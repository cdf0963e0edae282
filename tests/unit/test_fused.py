"""RMSNorm, SwiGLU and rotary cut: torch's and Triton's arithmetic (interpreted) against torch's own autograd in
float64; Triton's compiled for sm_90.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_videogpt.model import fused
from tests.triton_tools import interpreted
from tools.kernel_triton import fused as compiled_fused
from tools.kernel_triton import fused_cases

KERNELS = ("megatron_videogpt.model.fused_kernels", "megatron_videogpt.model.fused_triton")
EPS = 1e-5


@pytest.fixture
def triton_launches() -> Iterator[ModuleType]:
    with interpreted(*KERNELS) as (_, launches):
        yield launches


@pytest.fixture(params=["torch", "triton"])
def kernels(request: pytest.FixtureRequest, triton_launches: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    real = fused._module
    monkeypatch.setattr(fused, "_module", lambda name: triton_launches if name == "triton" else real(name))
    return request.param


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """``[l, heads, d]`` as complex numbers (channel i, channel i + d/2) times e^(i angle)."""
    half = x.shape[-1] // 2
    product = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([product.real, product.imag], dim=-1)


def agree(ours: Callable[..., Any], exact: Callable[..., Any], inputs: list[Tensor], limit: float) -> None:
    """Outputs and gradients of `inputs`, relative to the largest value, for a random gradient of the outputs; `exact`
    runs in float64.
    """
    mine = [x.detach().requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = (out if isinstance(out, tuple) else (out,) for out in (ours(*mine), exact(*theirs)))
    grads = [torch.randn(x.shape, dtype=torch.float64) for x in wanted]
    torch.autograd.backward(found, [g.to(x.dtype) for g, x in zip(grads, found)])
    torch.autograd.backward(wanted, grads)
    pairs = [*zip(found, wanted), *((a.grad, b.grad) for a, b in zip(mine, theirs))]
    for number, (a, b) in enumerate(pairs):
        assert a.dtype == inputs[0].dtype and a.shape == b.shape
        assert (a.double() - b).abs().max() <= limit * b.abs().max(), f"output or gradient {number}"


def spread(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, strided: bool = False) -> Tensor:
    """Random values; strided: rows lie further apart than they are long."""
    return (
        torch.randn(*shape[:-1], shape[-1] + 5, dtype=dtype)[..., : shape[-1]]
        if strided
        else torch.randn(shape, dtype=dtype)
    )


LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3}
"""Rounding of the result: float16 has steps of 1e-3."""
# Which kernels are tested is the same for every example; the interpreter is too slow to look for the smallest one that
# fails.
common = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.mark.parametrize("dtype", LIMITS)
@common
@given(rows=st.integers(1, 9), width=st.integers(1, 300), strided=st.booleans(), seed=st.integers(0, 99))
def test_rms_norm(kernels: str, dtype: torch.dtype, rows: int, width: int, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = [spread((rows, 1, width), dtype, strided), (1 + 0.3 * torch.randn(width)).to(dtype)]
    # At width 1 the gradient of x is a difference of equal numbers.
    agree(
        lambda x, w: fused.rms_norm(x, w, EPS, kernels),
        norm,
        inputs if width > 1 else [torch.cat([x, x + 1], -1) for x in inputs],
        LIMITS[dtype],
    )


def test_more_rows_than_partial_sums(
    kernels: str, triton_launches: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_launches, "PARTIALS", 3)
    torch.manual_seed(0)
    agree(lambda x, w: fused.rms_norm(x, w, EPS, kernels), norm, [spread((10, 1, 40)), spread((40,))], 1e-5)


@pytest.mark.parametrize("dtype", LIMITS)
@common
@given(rows=st.integers(1, 5), width=st.integers(1, 1500), strided=st.booleans(), seed=st.integers(0, 99))
def test_swiglu(kernels: str, dtype: torch.dtype, rows: int, width: int, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    agree(lambda x: fused.swiglu(x, kernels), gated, [spread((rows, 1, 2 * width), dtype, strided)], LIMITS[dtype])


def reference_split(joint: Tensor, angle: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    angle = angle.double()
    return turned(joint[rows, :, :-2].flatten(1, 2), angle[rows]), turned(joint[:, :, -2], angle), joint[:, :, -1]


@pytest.mark.parametrize("dtype", LIMITS)
@common
@given(
    tokens=st.integers(1, 9),
    groups=st.integers(1, 6),
    queries=st.integers(1, 5),
    half=st.integers(1, 50),
    strided=st.booleans(),
    chosen=st.booleans(),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_split_rotary(
    kernels: str,
    dtype: torch.dtype,
    tokens: int,
    groups: int,
    queries: int,
    half: int,
    strided: bool,
    chosen: bool,
    turned: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    slots = queries + 2
    joint = spread((tokens, groups * slots * 2 * half), dtype, strided).unflatten(-1, (groups, slots, 2 * half))
    angle = 40 * torch.randn(tokens, half) if turned else torch.zeros(tokens, half)
    rows = torch.randperm(tokens)[: 1 + tokens // 2].sort().values if chosen else torch.arange(tokens)
    place = torch.full((tokens,), -1, dtype=torch.int32)
    place[rows] = torch.arange(len(rows), dtype=torch.int32)
    extra = (rows, place) if chosen else ()
    agree(
        lambda x: fused.split_rotary(x, torch.cat([angle, angle], -1) if turned else None, kernels, *extra),
        lambda x: reference_split(x, angle, rows),
        [joint],
        LIMITS[dtype],
    )


def test_what_is_kept(kernels: str) -> None:
    """Inputs, and one number a row: nothing else, in bf16 too (whose float32 copies would be twice as large)."""
    x, weight = (
        torch.randn(6, 1, 64, dtype=torch.bfloat16, requires_grad=True),
        torch.ones(64, dtype=torch.bfloat16, requires_grad=True),
    )
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        fused.rms_norm(x, weight, EPS, kernels)
        assert sum(t.nbytes for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())) == 6 * 4
        kept.clear()
        fused.swiglu(x, kernels)
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]
        kept.clear()
        angles = torch.randn(6, 8)
        fused.split_rotary(x.view(6, 2, 4, 8), angles, kernels)
        assert [t.data_ptr() for t in kept] == [angles.data_ptr()]


def test_kernels_of_a_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused.select("cuda") == ("triton", "fused kernels on CUDA")
    assert fused.select("npu") == ("npu", "torch_npu's operators")
    assert fused.select("cpu")[0] == "torch"
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    assert fused.select("cuda") == ("torch", "the package triton is not installed")


def trained(kernels: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a small model with these kernels."""
    from tests.unit.test_last_layer import built, gradients, loss_of, row_of

    with monkeypatch.context() as patch:
        patch.setattr(fused, "select", lambda platform: (kernels, "for a test"))
        model = built(recompute, layers=2)
    assert model.config.kernels == model.decoder.final_layernorm.kernels == kernels
    loss = loss_of(model, row_of((1, 1)))
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_model_with_fused_kernels(
    recompute: str, triton_launches: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored rows, recomputation and all: the interpreted kernels give the loss and gradients of torch's operations."""
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    from megatron_videogpt.platforms import world

    world.start(platform, ParallelConfig())
    try:
        loss, wanted = trained("torch", recompute, monkeypatch)
        real, used = fused._module, []
        monkeypatch.setattr(
            fused, "_module", lambda name: used.append(name) or (triton_launches if name == "triton" else real(name))
        )
        other, found = trained("triton", recompute, monkeypatch)
    finally:
        world.stop()
    assert set(used) == {"triton"}
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


STACK = {"rotary": 32, "rotary backward": 32}
"""Bytes a thread.  The cosine and the sine of CUDA's library reserve 32 for arguments above 105,615, which positions
never reach; all else spills nothing.
"""


@pytest.mark.parametrize("name", fused_cases())
def test_compiles_for_hopper_without_spills(name: str) -> None:
    result = compiled_fused(fused_cases()[name])
    assert result.spilled <= STACK.get(name, 0) and result.registers <= 128, (name, result.registers, result.spilled)
