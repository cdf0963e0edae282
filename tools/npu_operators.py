"""torch_npu's operators on this device: against recorded cases of what their documentation says, and the time of small
calls, as Markdown.

python tools/npu_operators.py --json operators.json            on an Ascend NPU, after `source examples/ascend/env.sh`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from megatron_videogpt.attention import attend, npu  # noqa: E402
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.platforms import activate  # noqa: E402
from tools.measuring.clock import attempt, seconds  # noqa: E402

FOLDER = REPOSITORY / "tests" / "golden" / "ascend"
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 4e-2}
"""Of the largest recorded number: five roundings of bf16; for float32 what matrix units may leave of it."""
ROWS, HEADS, WIDTH = 242, 32, 96
"""A frame of the 3.8B model at 320x192."""

Found = dict[str, Tensor]


def attention_case(options: dict[str, Any], held: Found) -> Found:
    """The operator and its derivative on what was recorded; several rectangles by their merged statistics."""
    operators, call = torch.ops.npu, [held[name] for name in ("query", "key", "value")]
    mask = {"atten_mask": held["atten_mask"]} if "atten_mask" in held else {}
    place, scale = (options.pop("head_num"), options.pop("input_layout")), options.pop("scale")
    names, counts = ("attention", "softmax_max", "softmax_sum"), options.pop("key_counts", None)
    if counts is None:
        found = dict(zip(names, operators.npu_fusion_attention(*call, *place, scale=scale, **mask, **options)))
        statistics = {"attention_in" if name == "attention" else name: value for name, value in found.items()}
        grads = operators.npu_fusion_attention_grad(
            *call, held["dy"], *place, scale_value=scale, **statistics, **mask, **options
        )
        return found | dict(zip(("dq", "dk", "dv"), grads[:3]))
    statistics = {"attention_in" if name == "attention" else name: held[name] for name in names}
    parts, found, first = [], {}, 0
    for number, count in enumerate(counts):
        one = call[0], *(x[:, first : first + count] for x in call[1:])
        results = operators.npu_fusion_attention(*one, *place, scale=scale)
        found |= {f"{name}_{number}": value for name, value in zip(names, results)}
        grads = operators.npu_fusion_attention_grad(*one, held["dy"], *place, scale_value=scale, **statistics)
        parts.append(grads[:3])
        first += count
    queries, keys, values = zip(*parts)
    return found | {"dq": sum(queries), "dk": torch.cat(keys, 1), "dv": torch.cat(values, 1)}


def layer_case(operator: str, options: dict[str, Any], held: Found) -> Found:
    """Of the small operators."""
    operators = torch.ops.npu
    if operator == "npu_rms_norm":
        y, rstd = operators.npu_rms_norm(held["input"], held["gamma"], options["epsilon"])
        dx, dgamma = operators.npu_rms_norm_backward(held["dy"], held["input"], held["gamma"], rstd)
        return {"y": y, "rstd": rstd, "dx": dx, "dgamma": dgamma}
    if operator == "npu_swiglu":
        y = operators.npu_swiglu(held["input"], options["dim"])
        return {"y": y, "dx": operators.npu_swiglu_backward(held["dy"], held["input"], options["dim"])}
    assert operator == "npu_rotary_mul", operator
    call = held["input"], held["r1"], held["r2"]
    grads = operators.npu_rotary_mul_backward(held["dy"], *call, options["rotary_mode"])
    return {"y": operators.npu_rotary_mul(*call, options["rotary_mode"]), "dx": grads[0]}


def cases(device: torch.device) -> Iterator[tuple[str, str]]:
    """(case and numbers, what is wrong or an empty string)."""
    from safetensors.torch import load_file

    recorded = load_file(FOLDER / "cases.safetensors")
    for case in json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["cases"]:
        expected = {name: recorded[f"{case['name']}/{name}"] for name in case["tensors"]}
        for dtype, most in ALLOWED.items():
            yield f"{case['name']} {str(dtype).removeprefix('torch.')}", wrong(case, expected, dtype, most, device)


def wrong(case: dict[str, Any], expected: Found, dtype: torch.dtype, most: float, device: torch.device) -> str:
    """What is wrong with one case in one dtype, in one line."""
    # Statistics are float32 whatever the rest is.
    held = {
        name: x.to(device) if x.dtype != torch.float32 or name.startswith("softmax") else x.to(device, dtype)
        for name, x in expected.items()
    }
    worst: dict[str, float] = {}

    def run() -> None:
        if case["operator"] == "npu_fusion_attention":
            found = attention_case(dict(case["arguments"]), held)
        else:
            found = layer_case(case["operator"], case["arguments"], held)
        for name, value in found.items():
            exact = expected[name].double()
            # A maximum may be 0; statistics are compared as a softmax uses them.
            scale = max(float(exact.abs().max()), 1.0 if name.startswith("softmax_max") else 1e-30)
            worst[name] = float((value.detach().cpu().double() - exact).abs().max()) / scale

    failed = attempt(run)
    if failed:
        return failed
    name = max(worst, key=lambda key: worst[key])
    return "" if worst[name] <= most else f"{name} by {worst[name]:.1e}, allowed {most:g}"


def call_times(device: str, count: int) -> dict[str, float]:
    """Microseconds of one call on a frame's rows: the operator, its derivative, and both as attention uses them, with
    the merge.
    """
    noise = torch.Generator().manual_seed(0)
    draw = torch.randn(4, ROWS, HEADS, WIDTH, generator=noise).to(device, torch.bfloat16)
    q, k, v, dy = (x.unsqueeze(0) for x in draw)
    options = {"atten_mask": torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1).to(device), "sparse_mode": 1}
    scale, operators = WIDTH**-0.5, torch.ops.npu
    out, most, total = operators.npu_fusion_attention(q, k, v, HEADS, "BSND", scale=scale, **options)[:3]
    kept = {"softmax_max": most, "softmax_sum": total, "attention_in": out}
    intervals = torch.tensor([[0, row + 1, 0, 0] for row in range(ROWS)], dtype=torch.int32).to(device)
    leaves = [x[0].clone().requires_grad_() for x in (q, k, v)]

    def both() -> None:
        torch.autograd.grad(attend("npu", *leaves, intervals, scale), leaves, dy[0])

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: operators.npu_fusion_attention(q, k, v, HEADS, "BSND", scale=scale, **options),
        "backward": lambda: operators.npu_fusion_attention_grad(
            q, k, v, dy, HEADS, "BSND", scale_value=scale, **kept, **options
        ),
        "both, merged": both,
    }
    for call in calls.values():
        call()
    return {name: 1e6 * seconds(call, device, count) for name, call in calls.items()}


def main() -> int:
    """Print tables; exit code 1 if a case is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100, help="in a row, of which the time is the mean")
    parser.add_argument("--json", type=paths.path, help="also write the results into this file")
    options = parser.parse_args()
    device = activate("npu").device
    answer: dict[str, Any] = {"cases": {}, "microseconds": {}, "assumed": 1e6 * npu.CALL_SECONDS}

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(answer), encoding="utf-8")

    print("| recorded case | verdict |\n|---|---|", flush=True)
    for name, problem in cases(device):
        answer["cases"][name] = problem
        print(f"| {name} | {problem or 'right'} |", flush=True)
        save()
    print(f"\n| {ROWS} rows, {HEADS} heads of {WIDTH}, bf16 | us a call |\n|---|---|", flush=True)
    answer["microseconds"] = call_times(device.type, options.calls)
    save()
    for name, value in answer["microseconds"].items():
        print(f"| {name} | {value:.0f} |", flush=True)
    return 1 if any(answer["cases"].values()) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(exit_code(error))
