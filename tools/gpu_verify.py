"""Is everything that has kernels of its own right on this device?  Attention backends and fused layers against plain
float64, as a Markdown table.

python tools/gpu_verify.py --device cuda            start-up comparison, 200 random layouts, norms, SwiGLU and rotary
positions; --device npu on an Ascend NPU
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.attention import BACKENDS, verify
from megatron_videogpt.attention.choice import obstacle
from megatron_videogpt.config import paths
from megatron_videogpt.model import fused
from megatron_videogpt.platforms import activate
from tests.random_layouts import random_case
from tools.measuring.clock import attempt

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

FEW = 10
"""Layouts for a backend that compiles for every length."""


def sums(backend: str, device: str, dtype: torch.dtype, head_dim: int) -> tuple[bool, ...]:
    """The values of `deterministic` that a backend knows."""
    return (False,) if obstacle(backend, device, dtype, head_dim, deterministic=True) else (False, True)


def start_up(backend: str, device: str, dtype: torch.dtype, head_dim: int) -> str:
    """What the comparison before a run's first step says: an empty string, or what is wrong."""
    problem: list[str] = []
    orders = sums(backend, device, dtype, head_dim)

    def run() -> None:
        problem.extend(
            verify.problem(backend, torch.device(device), dtype, head_dim, queries, fixed)
            for queries in (1, 2)
            for fixed in orders
        )

    failed = attempt(run)
    return failed or next((line for line in problem if line), "")


def layouts(backend: str, device: str, dtype: torch.dtype, head_dim: int, count: int) -> str:
    """The same for `count` random layouts."""
    wrong: list[str] = []
    orders = sums(backend, device, dtype, head_dim)

    def run() -> None:
        """Compare them all, and note what is wrong."""
        for seed in range(count):
            case = random_case(seed, 400)
            table = case.intervals[case.kept]
            result = verify.errors(
                backend,
                case.tensors(head_dim, dtype, device, seed),
                table.to(device),
                seed % len(orders) == 1,
                verify.plans(backend, table, torch.device(device)),
            )
            wrong.extend(
                f"layout {seed}: {name} by {found:.1e}"
                for name, found, most in zip(verify.NAMES, *result)
                if found > most
            )

    return attempt(run) or (f"{len(wrong)} errors, {wrong[0]}" if wrong else "")


def fused_layers(device: str, dtype: torch.dtype) -> str:
    """Norm, SwiGLU and rotary cut of this device's kernels against torch's in float64, at the 3.8B model's widths."""
    kernels = fused.select(device)[0]
    limit = {torch.float32: 2e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    angles = draw(515, 96)
    cases: dict[str, tuple[list[Tensor], Callable[..., object]]] = {
        "rms_norm": ([draw(515, 1, 3072), draw(3072)], lambda name, x, w: fused.rms_norm(x, w, 1e-5, name)),
        "swiglu": ([draw(515, 1, 16384)], lambda name, x: fused.swiglu(x, name)),
        "split_rotary": (
            [draw(515, 8, 3, 96)],
            lambda name, x: fused.split_rotary(x, torch.cat([angles[:, :48]] * 2, -1).to(x.device), name),
        ),
    }
    wrong: list[str] = []
    for label, (inputs, function) in cases.items():
        worst: list[float] = []

        def run() -> None:
            ours = results(lambda *x: function(kernels, *x), [x.to(device, dtype) for x in inputs])  # noqa: B023
            exact = results(lambda *x: function("torch", *x), [x.to(dtype).double() for x in inputs])  # noqa: B023
            worst.extend(float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in zip(ours, exact))  # noqa: B023

        failed = attempt(run)
        if failed or not max(worst, default=0.0) <= limit:
            wrong.append(f"{label}: {failed or f'{max(worst):.1e}, allowed {limit:.1e}'}")
    return "; ".join(wrong)


def results(function: Callable[..., object], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of the inputs for ones as gradients of the outputs times their place."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    weights = [torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape).to(x) for x in outs]
    return [*(x.detach() for x in outs), *torch.autograd.grad(outs, leaves, weights)]


def main() -> None:
    """Print the table; exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "npu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--backends", default=",".join(name for name in BACKENDS if name != "reference"))
    parser.add_argument("--layouts", type=int, default=200, help="random layouts for each backend and number type")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=paths.path, help="also write the verdicts into this file")
    options = parser.parse_args()
    if options.device == "npu":
        activate("npu")
    verdicts: dict[str, str] = {}
    print("| what | numbers | verdict |\n|---|---|---|", flush=True)

    def note(what: str, dtype: torch.dtype, verdict: str) -> None:
        verdicts[f"{what} {dtype}"] = verdict
        print(f"| {what} | {str(dtype).removeprefix('torch.')} | {verdict or 'right'} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(verdicts), encoding="utf-8")

    chosen = []
    for backend in options.backends.split(","):
        reason = obstacle(backend, options.device, torch.bfloat16, 96)
        if reason:
            print(f"| {backend} | bfloat16 | not run: {reason} |", flush=True)
        else:
            chosen.append(backend)
    check_all(chosen, options.device, options.layouts, [DTYPES[name] for name in options.dtypes], note)
    sys.exit(1 if any(verdicts.values()) else 0)


def check_all(
    backends: list[str],
    device: str,
    count: int,
    dtypes: list[torch.dtype],
    note: Callable[[str, torch.dtype, str], None],
) -> None:
    """Everything, what training needs first: a time limit may cut off the rest."""
    for dtype in dtypes:
        note("fused layers", dtype, fused_layers(device, dtype))
    every = [(dtype, head_dim) for dtype in dtypes for head_dim in (64, 96, 128)]
    for dtype, head_dim in sorted(every, key=lambda pair: pair != (torch.bfloat16, 96)):
        able = [backend for backend in backends if not obstacle(backend, device, dtype, head_dim)]
        for backend in able:
            note(
                f"{backend}, heads of {head_dim}, start-up comparison",
                dtype,
                start_up(backend, device, dtype, head_dim),
            )
        for backend in able if head_dim == 96 else []:
            number = min(count, FEW) if backend == "flex" else count
            note(
                f"{backend}, heads of {head_dim}, {number} random layouts",
                dtype,
                layouts(backend, device, dtype, head_dim, number),
            )


if __name__ == "__main__":
    main()
