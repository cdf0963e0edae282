"""Attention backends side by side in one run: forward, backward, TFLOP/s on attended pairs, peak extra memory, time of
building tile lists.

    # stage 4's mask cut to 8K tokens, on 2 CPU threads
    python tools/benchmark_attention.py
    python tools/benchmark_attention.py --device cuda --dtype bfloat16 --heads 32 --masks stage4-long --lengths 0 \\
        --backends sdpa,sdpa-full,flex,triton,flash --rows 384
    # on an Ascend NPU, after `source examples/ascend/env.sh`
    python tools/benchmark_attention.py --device npu --dtype bfloat16 --heads 32 --masks stage4-long --lengths 0 \\
        --backends npu,npu_dense,sdpa
    # several of anything: a sweep, with a summary
    python tools/benchmark_attention.py --device cuda --dtype bfloat16 --heads 32 --masks stage1,stage4,nbp,causal \\
        --lengths 8192,16384,32768,65536 --head-dims 64,96,128 --plot sweep.png
    # the factorised network's three attentions instead: options and a table of their own (--help after it)
    python tools/benchmark_attention.py factorised

Backends: those of the package, NAME/fixed for one whose gradients are the same bits in every run, and two of torch:
`sdpa` is scaled_dot_product_attention with the mask as a dense boolean matrix, `sdpa-full` attends everything (its
TFLOP/s count all pairs). FLOPs: 4 per attended pair and channel of all heads forward, 10 backward (2.5 times, as
kernels compute the scores again). Repetitions alternate between the backends and the tables show medians, so that
ratios are fair on a busy machine.  OMP_WAIT_POLICY=PASSIVE is set unless the environment says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

# Threads that wait must sleep: spinning ones lose whole time slices where other processes want the cores too.  Read
# when torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.attention import BACKENDS  # noqa: E402
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.platforms import activate  # noqa: E402
from tools.measuring import factorised, masks  # noqa: E402
from tools.measuring.clock import attempt, peak_memory  # noqa: E402
from tools.measuring.kernels import (  # noqa: E402
    BASELINES,
    Kernel,
    building_clock,
    forget,
    forward_backward,
    kernel,
    obstacle_of,
)
from tools.measuring.report import (  # noqa: E402
    Case,
    Result,
    case_table,
    heading,
    machine,
    names,
    numbers,
    plot,
    summary_tables,
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=names, default=("stage4",), help=f"comma-separated: {', '.join(masks.NAMES)}")
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=(8192,),
        help="most tokens of a row, comma-separated; 0: --packed whole samples, however long",
    )
    parser.add_argument("--head-dims", type=numbers, default=(96,), help="comma-separated")
    parser.add_argument(
        "--grid", type=numbers, default=(12, 20), help="patch rows and columns of a frame (12,20: 320x192 pixels)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1,
        metavar="N",
        help="pad rows to a multiple of N tokens, as training does for some backends",
    )
    parser.add_argument("--packed", type=int, default=1, help="samples in a row, with --lengths 0")
    parser.add_argument("--frames", type=int, default=16, help="of the mask `split`")
    parser.add_argument("--clips", type=numbers, default=(2, 16), help="fewest and most clips of the mask `split`")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="key-value heads; default: as many as heads")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--backends",
        type=names,
        default=("sdpa", "ranged"),
        help=f"comma-separated: {', '.join((*BASELINES, *BACKENDS))}, NAME/fixed",
    )
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions of each, alternating")
    parser.add_argument("--seed", type=int, default=0, help="of the clip split and the numbers")
    parser.add_argument("--plot", type=paths.path, help="also draw the speed by mask into this PNG")
    parser.add_argument("--json", type=paths.path, help="also write all results into this file")
    options = parser.parse_args()
    unknown = {name.removesuffix("/fixed") for name in options.backends} - {*BASELINES, *BACKENDS}
    if unknown:
        parser.error(f"--backends holds {sorted(unknown)}, but knows {', '.join((*BASELINES, *BACKENDS))}")
    if len(options.clips) != 2 or not 1 <= options.clips[0] <= options.clips[1] <= options.frames:
        parser.error(
            f"--clips {options.clips}: expected two numbers, from 1 to --frames ({options.frames}), the first "
            "not above the second"
        )
    if len(options.grid) != 2 or options.rows < 1 or options.repeat < 1:
        parser.error("--grid needs rows and columns; --rows and --repeat at least 1")
    return options


def tensors(rows: int, heads: int, kv_heads: int, head_dim: int, options: argparse.Namespace) -> list[Tensor]:
    """q, k, v that want gradients, and a gradient of the output, normally distributed."""
    noise = torch.Generator(options.device).manual_seed(options.seed)
    shapes = [(rows, count, head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    values = [torch.randn(shape, generator=noise, device=options.device, dtype=torch.float32) for shape in shapes]
    return [x.to(getattr(torch, options.dtype)).requires_grad_(number < 3) for number, x in enumerate(values)]


def prepare(
    name: str, mask: masks.Mask, inputs: list[Tensor], result: Result, options: argparse.Namespace
) -> tuple[Kernel, int] | None:
    """(function, calls per repetition) of a backend after a warm-up that measures its memory and tile lists; None, with
    a note, if it cannot run.
    """
    intervals, head_dim = mask.intervals.to(options.device), inputs[0].shape[-1]
    made: list[tuple[Kernel, int]] = []

    def warm_up() -> None:
        run = kernel(name, intervals, head_dim**-0.5)
        forward_backward(run, inputs, options.device)
        with building_clock(options.device) as building:
            forget()
            result.memory = peak_memory(lambda: forward_backward(run, inputs, options.device), options.device)
        result.building = building.seconds if name not in BASELINES else float("nan")
        once = sum(forward_backward(run, inputs, options.device)) if options.device != "cpu" else 1.0
        made.append((run, max(1, int(0.03 / once))))

    result.note = obstacle_of(name, intervals, options.device, inputs[0].dtype, head_dim) or attempt(warm_up)
    return made[0] if made else None


def measure(mask: masks.Mask, head_dim: int, options: argparse.Namespace, save: Callable[[Case], None]) -> Case:
    """All backends on one mask.  save: is called whenever there are new numbers, in case a later backend never comes
    back.
    """
    kv_heads = options.kv_heads or options.heads
    case = Case(mask.name, len(mask.intervals), mask.tokens, mask.pairs, options.heads, kv_heads, head_dim, str(mask))
    inputs = tensors(len(mask.intervals), options.heads, kv_heads, head_dim, options)
    kernels: dict[str, tuple[Kernel, int]] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in options.backends}

    def time_once(name: str) -> None:
        run, count = kernels[name]
        times[name].append(forward_backward(run, inputs, options.device, count))
        case.results[name].forward, case.results[name].backward = (
            statistics.median(pair[i] for pair in times[name]) for i in (0, 1)
        )

    for name in options.backends:
        case.results[name] = Result()
        prepared = prepare(name, mask, inputs, case.results[name], options)
        if prepared is not None:
            kernels[name] = prepared
            time_once(name)
        save(case)
    for _ in range(options.repeat - 1):
        for name in kernels:
            time_once(name)
    save(case)
    return case


def main() -> None:
    """Measure and print Markdown tables."""
    if sys.argv[1:2] == ["factorised"]:
        factorised.run(sys.argv[2:])
        return
    options = arguments()
    if options.device == "npu":
        # What torch needs to know of NPUs comes with the platform.
        activate("npu")
    torch.set_num_threads(options.threads)
    print(f"{heading(options.device, options.threads)}, {options.dtype}\n", flush=True)
    split, cases = masks.Split(options.frames, options.clips), []

    def save(case: Case) -> None:
        if options.json:
            options.json.write_text(json.dumps([asdict(one) for one in (*cases, case)]), encoding="utf-8")

    for head_dim, name, length in itertools.product(options.head_dims, options.masks, options.lengths):
        mask = masks.build(name, length or None, options.grid, options.seed, options.rows, split, options.packed)
        cases.append(measure(mask, head_dim, options, save))
        print(case_table(cases[-1]), flush=True)
    if len(cases) > 1:
        print(summary_tables(cases))
    if options.plot:
        plot(options.plot, cases, machine(options.device, options.threads))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
