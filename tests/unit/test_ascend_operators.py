"""The stand-in for torch_npu's operators: against recorded cases, through each version's schema, and what goes wrong
silently on a device goes wrong here too.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.ascend import operators
from tests.ascend.attention import UNINITIALISED

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("MVG_REFERENCE_ASCEND") or ROOT / "tests" / "golden" / "ascend")
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["cases"]}
STATISTICS = ("softmax_max", "softmax_sum")
MODELLED = {"full_gqa", "all_mask", "default_band", "merged_rectangles", "rms_norm", "swiglu", "rotary"}


@pytest.fixture(scope="module", params=operators.VERSIONS)
def npu(request: pytest.FixtureRequest) -> Iterator[Any]:
    with operators.defined(request.param) as defined:
        yield defined


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = load_file(FOLDER / "cases.safetensors")
    return dict(CASES[name]["arguments"]), {key: tensors[f"{name}/{key}"] for key in CASES[name]["tensors"]}


def near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert float((actual.detach() - expected.detach()).abs().max()) <= 1e-6


def attention_case(npu: Any, name: str) -> None:
    options, held = case(name)
    mask = {"atten_mask": held["atten_mask"]} if "atten_mask" in held else {}
    call = [held[key] for key in ("query", "key", "value")]
    place, scale = [options.pop("head_num"), options.pop("input_layout")], options.pop("scale")
    out, most, total, *_ = npu.npu_fusion_attention(*call, *place, scale=scale, **mask, **options)
    for key, value in (("attention", out), ("softmax_max", most), ("softmax_sum", total)):
        near(value, held[key])
    statistics = {"softmax_max": most, "softmax_sum": total, "attention_in": out}
    grads = npu.npu_fusion_attention_grad(*call, held["dy"], *place, scale_value=scale, **statistics, **mask, **options)
    for key, value in zip(("dq", "dk", "dv"), grads[:3]):
        near(value, held[key])


@pytest.mark.parametrize("name", ["full_gqa", "all_mask", "default_band"])
def test_attention_is_as_recorded(npu: Any, name: str) -> None:
    attention_case(npu, name)


def test_two_rectangles_are_merged_as_recorded(npu: Any) -> None:
    options, held = case("merged_rectangles")
    place, scale = (options["head_num"], options["input_layout"]), options["scale"]
    edges = torch.tensor([0, *options["key_counts"]]).cumsum(0).tolist()
    grads = []
    for number, (first, last) in enumerate(zip(edges, edges[1:])):
        call = held["query"], held["key"][:, first:last], held["value"][:, first:last]
        results = npu.npu_fusion_attention(*call, *place, scale=scale)
        for key, value in zip(("attention", "softmax_max", "softmax_sum"), results):
            near(value, held[f"{key}_{number}"])
        merged = {"attention_in" if key == "attention" else key: held[key] for key in ("attention", *STATISTICS)}
        grads.append(npu.npu_fusion_attention_grad(*call, held["dy"], *place, scale_value=scale, **merged)[:3])
    near(grads[0][0] + grads[1][0], held["dq"])
    near(torch.cat([part[1] for part in grads], 1), held["dk"])
    near(torch.cat([part[2] for part in grads], 1), held["dv"])


def test_layers_are_as_recorded(npu: Any) -> None:
    options, held = case("rms_norm")
    y, rstd = npu.npu_rms_norm(held["input"], held["gamma"], options["epsilon"])
    near(y, held["y"])
    near(rstd, held["rstd"])
    for key, value in zip(("dx", "dgamma"), npu.npu_rms_norm_backward(held["dy"], held["input"], held["gamma"], rstd)):
        near(value, held[key])
    options, held = case("swiglu")
    near(npu.npu_swiglu(held["input"], options["dim"]), held["y"])
    near(npu.npu_swiglu_backward(held["dy"], held["input"], options["dim"]), held["dx"])
    options, held = case("rotary")
    call = held["input"], held["r1"], held["r2"]
    near(npu.npu_rotary_mul(*call, options["rotary_mode"]), held["y"])
    near(npu.npu_rotary_mul_backward(held["dy"], *call, options["rotary_mode"])[0], held["dx"])


def test_cases_that_are_not_modelled_are_refused(npu: Any) -> None:
    """Only another folder than the project's has such."""
    assert set(CASES) >= MODELLED
    for name in set(CASES) - MODELLED:
        with pytest.raises(RuntimeError, match="TND|sparse_mode"):
            attention_case(npu, name)


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=noise).requires_grad_() for shape in shapes]


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return torch.autograd.grad((out * weights).sum(), inputs)


def test_each_operator_differentiates_itself(npu: Any) -> None:
    q, k, v = inputs = tensors((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.6
    out = npu.npu_fusion_attention(*inputs, 4, "BSND", atten_mask=mask, sparse_mode=1, scale=0.3)[0]
    q2, k2, v2 = (x.transpose(1, 2) for x in inputs)
    plain = F.scaled_dot_product_attention(q2, k2, v2, attn_mask=~mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    near(out, plain)
    for actual, expected in zip(gradients(out, inputs), gradients(plain, inputs)):
        near(actual, expected)
    x, gamma = inputs = tensors((6, 1, 8), (8,))
    for actual, expected in zip(
        gradients(npu.npu_rms_norm(x, gamma, 1e-5)[0], inputs), gradients(F.rms_norm(x, (8,), gamma, 1e-5), inputs)
    ):
        near(actual, expected)
    first, second = x.chunk(2, -1)
    near(gradients(npu.npu_swiglu(x), [x])[0], gradients(F.silu(first) * second, [x])[0])
    (x, raw) = tensors((6, 1, 3, 8), (6, 1, 1, 8))
    angles = [torch.cos(raw).detach().requires_grad_(), torch.sin(raw).detach().requires_grad_()]
    turned = torch.cat([-x[..., 4:], x[..., :4]], -1)
    plain = x * angles[0] + turned * angles[1]
    for actual, expected in zip(
        gradients(npu.npu_rotary_mul(x, *angles), [x, *angles]), gradients(plain, [x, *angles])
    ):
        near(actual, expected)


def test_wrong_calls_fail_in_the_dispatcher(npu: Any) -> None:
    q, k, v = (x.detach() for x in tensors((1, 5, 2, 8), (1, 7, 2, 8), (1, 7, 2, 8)))
    with pytest.raises(RuntimeError, match="scale_value"):  # the gradient's name for it
        npu.npu_fusion_attention(q, k, v, 2, "BSND", scale_value=0.3)
    with pytest.raises(RuntimeError, match="Expected a value of type 'int'"):
        npu.npu_fusion_attention(q, k, v, 2.0, "BSND")
    out, most, total, *rest = npu.npu_fusion_attention(q, k, v, 2, "BSND")
    held = {"softmax_max": most, "softmax_sum": total, "attention_in": out}
    grads = npu.npu_fusion_attention_grad(q, k, v, out, 2, "BSND", **held)
    assert [x.shape for x in grads[:3]] == [q.shape, k.shape, v.shape] and set(grads[3:]) == {None}
    with pytest.raises(RuntimeError, match="Unknown keyword|sink"):
        npu.npu_fusion_attention_grad(q, k, v, out, 2, "BSND", sink=torch.zeros(2), **held)
    # What is not initialised must not go on to the gradient.
    assert rest[0].numel() == 0 and tuple(rest[1:]) == UNINITIALISED
    with pytest.raises(RuntimeError, match="seed"):
        npu.npu_fusion_attention_grad(q, k, v, out, 2, "BSND", seed=rest[1], **held)


def test_a_fixed_number_of_gradients_breaks_between_versions() -> None:
    q, k, v = (x.detach() for x in tensors((1, 5, 2, 8), (1, 7, 2, 8), (1, 7, 2, 8)))
    counts = {}
    for version in operators.VERSIONS:
        with operators.defined(version, "npu_counted") as npu:
            out, most, total, *_ = npu.npu_fusion_attention(q, k, v, 2, "BSND")
            held = {"softmax_max": most, "softmax_sum": total, "attention_in": out}
            counts[version] = len(npu.npu_fusion_attention_grad(q, k, v, out, 2, "BSND", **held))
    assert counts == {"2.7.1": 4, "2.7.1.post4": 5, "2.14.0": 5}


def test_merging_by_autograd_or_with_own_statistics_is_wrong_without_an_error(npu: Any) -> None:
    """Why the backend brings its own backward."""
    q, k, v = inputs = tensors((1, 6, 2, 8), (1, 9, 2, 8), (1, 9, 2, 8))
    parts = [npu.npu_fusion_attention(q, k[:, rows], v[:, rows], 2, "BSND") for rows in (slice(4), slice(4, 9))]
    most = torch.maximum(parts[0][1], parts[1][1])[..., :1]
    weights = [part[2][..., :1] * torch.exp(part[1][..., :1] - most) for part in parts]
    shares = [(x / (weights[0] + weights[1])).transpose(1, 2) for x in weights]
    merged = parts[0][0] * shares[0] + parts[1][0] * shares[1]
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), scale=1.0).transpose(1, 2)
    near(merged, plain)
    exact = gradients(plain, inputs)
    # autograd follows the weights of the merge into the statistics, where torch_npu's formula ends.
    by_autograd = gradients(merged, inputs)
    grad = torch.linspace(-1, 1, plain.numel()).reshape(plain.shape)
    own = {"softmax_max": parts[0][1], "softmax_sum": parts[0][2], "attention_in": parts[0][0]}
    with torch.no_grad():
        dk = npu.npu_fusion_attention_grad(q, k[:, :4], v[:, :4], grad, 2, "BSND", **own)[1]
        inverted = npu.npu_fusion_attention(q, k, v, 2, "BSND", atten_mask=torch.ones(6, 9).tril(2).bool())[0]
    assert (by_autograd[0] - exact[0]).abs().max() > 0.05
    assert (dk - exact[1][:, :4]).abs().max() > 0.05
    seen = torch.ones(6, 9).tril(2).bool()
    meant = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), attn_mask=seen, scale=1.0)
    assert (inverted - meant.transpose(1, 2)).abs().max() > 0.05


@pytest.mark.parametrize(("layout", "order"), [("BNSD", (0, 2, 1, 3)), ("BSH", None), ("SBH", (1, 0, 2))])
def test_layouts_hold_the_same_numbers(npu: Any, layout: str, order: tuple[int, ...] | None) -> None:
    inputs = tensors((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.6

    def stored(x: Tensor) -> Tensor:
        x = x.flatten(2) if "H" in layout else x
        return x if order is None else x.permute(order)

    expected = npu.npu_fusion_attention(*inputs, 4, "BSND", atten_mask=mask, sparse_mode=1)
    # Views as they are: nothing has to be contiguous.
    actual = npu.npu_fusion_attention(*map(stored, inputs), 4, layout, atten_mask=mask, sparse_mode=1)
    near(actual[0], stored(expected[0]))
    near(actual[1], expected[1])
    turned = stored(torch.linspace(-1, 1, expected[0].numel()).reshape(expected[0].shape))
    found = torch.autograd.grad((actual[0] * turned).sum(), inputs)
    for one, other in zip(found, gradients(expected[0], inputs)):
        near(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_far_off_as_torch_is(npu: Any, dtype: torch.dtype) -> None:
    inputs = [x.detach().to(dtype).requires_grad_() for x in tensors((1, 40, 4, 16), (1, 60, 2, 16), (1, 60, 2, 16))]
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def plain(leaves: list[Tensor]) -> list[Tensor]:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.25, enable_gqa=True).transpose(1, 2)
        return [out, *gradients(out, leaves)]

    out = npu.npu_fusion_attention(*inputs, 4, "BSND", scale=0.25)[0]
    here = [out, *gradients(out, inputs)]
    assert {x.dtype for x in here} == {dtype}
    for actual, torchs, right in zip(here, plain(inputs), plain(exact)):
        errors = [
            float((x.detach().double() - right.detach()).abs().max() / right.detach().abs().max())
            for x in (actual, torchs)
        ]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps / 2


def test_norms_gradient_of_gamma_is_float32(npu: Any) -> None:
    x, gamma = (x.detach().bfloat16() for x in tensors((6, 8), (8,)))
    y, rstd = npu.npu_rms_norm(x, gamma)
    dx, dgamma = npu.npu_rms_norm_backward(y, x, gamma, rstd)
    assert (y.dtype, rstd.dtype, dx.dtype, dgamma.dtype) == (x.dtype, torch.float32, x.dtype, torch.float32)
    assert npu.npu_rms_norm(x, gamma.float())[0].dtype == torch.bfloat16
    # Angles are rounded to the input's dtype.
    r1, r2 = (torch.cos(torch.arange(6.0)).reshape(6, 1, 1, 1).expand(6, 1, 1, 8) for _ in range(2))
    turned = npu.npu_rotary_mul(x.reshape(6, 1, 1, 8), r1, r2)
    assert torch.equal(turned, npu.npu_rotary_mul(x.reshape(6, 1, 1, 8), r1.bfloat16(), r2.bfloat16()))


def test_stand_ins_import_nothing_of_the_project() -> None:
    files = sorted((ROOT / "tests" / "ascend").rglob("*.py"))
    assert len(files) >= 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= len(path.relative_to(ROOT / "tests" / "ascend").parts), path
                names = [node.module or ""] if node.level == 0 else []
            theirs = [name for name in names if name.split(".")[0] in ("megatron_videogpt", "tests", "tools")]
            assert all(name.split(".")[:2] == ["tests", "ascend"] for name in theirs), path
