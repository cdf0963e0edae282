"""A whole training step of any configuration on synthetic latents: time, MFU, memory, and where the time goes, with
each attention backend.

    python tools/benchmark_step.py examples/videogpt/stage4.toml --frame 192x320 --fit \\
        --backends flash,triton,flex,dense
    torchrun --nproc_per_node=2 tools/benchmark_step.py examples/videogpt/quickstart.toml --frame 64x64 \\
        --backends ranged,dense
    python tools/benchmark_step.py examples/videogpt/quickstart.toml parallel.tensor=1 parallel.sequence=false \\
        --backends ranged,dense
    # is this commit slower?
    python tools/benchmark_step.py examples/videogpt/quickstart.toml --steps 20 --against HEAD~1 --processes 2

The model, its wrapping, the optimizer and `train_step` are the trainer's own, queued as it queues them: the host
reads a step's gradient norm when the next one is queued.  No video is read, and weights start as noise.  The backend
`dense` is torch's scaled_dot_product_attention with a dense mask, as the published Video-GPT code uses it; it exists
in this tool only.  A step has --micro-batches rows on every data parallel rank (the configuration's global_batch_size
is not used), all ranks alike.  FLOPs are those of attended pairs (`plan.estimate`); rows that no head reads do not
count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.codec.geometry import expected_geometry  # noqa: E402
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.config.check import load_checked  # noqa: E402
from megatron_videogpt.config.derived import in_precision  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.model.flops import component_parameters  # noqa: E402
from megatron_videogpt.objective.build import parameter_table  # noqa: E402
from megatron_videogpt.plan.estimate import longest_row  # noqa: E402
from megatron_videogpt.plan.memory import rank_memory  # noqa: E402
from megatron_videogpt.platforms import Platform, activate  # noqa: E402
from megatron_videogpt.train.cost.cli import frame_of  # noqa: E402
from megatron_videogpt.train.metrics import peak_tflops  # noqa: E402
from tools.measuring.against import compare  # noqa: E402
from tools.measuring.report import command, markdown  # noqa: E402

if TYPE_CHECKING:
    from tools.measuring.steps import Timed


COLUMNS = (
    *("attention", "step ms", "tokens/s", "TFLOP/s a device", "MFU", "HFU"),
    *("prepare ms", "forward ms", "backward ms", "optimizer ms", "tile lists ms", "share", "peak GiB"),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=paths.path, help="TOML file of a run")
    parser.add_argument("overrides", nargs="*", help="section.option=value")
    parser.add_argument(
        "--backends",
        default="",
        help="comma-separated attention backends, `dense` among them; default: the configuration's",
    )
    parser.add_argument(
        "--frame", help="HEIGHTxWIDTH of the frames in pixels; default: 16:9 videos as the configuration crops them"
    )
    parser.add_argument(
        "--lengths",
        choices=("fixed", "random"),
        default="fixed",
        help="fixed: every row like the longest, its last clip of one frame",
    )
    parser.add_argument("--micro-batches", type=int, default=1, help="rows of each data parallel rank in a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--fit", action="store_true", help="leave out layers until the device's memory suffices")
    parser.add_argument(
        "--peak",
        type=float,
        default=0.0,
        help="peak TFLOP/s of a device; default: logging.peak_tflops, else the built-in table",
    )
    parser.add_argument(
        "--sync-check", action="store_true", help="count where the host waits for the GPU inside a step"
    )
    parser.add_argument(
        "--local-layers", action="store_true", help="without Transformer Engine's layers, although it is installed"
    )
    parser.add_argument("--json", type=paths.path, help="also write the results into this file")
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="measure this checkout and a commit of it in turns, and compare their medians",
    )
    parser.add_argument("--rounds", type=int, default=3, help="with --against: how often each is measured")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="with --against: processes of each measurement (start without torchrun)",
    )
    options = parser.parse_intermixed_args()
    if options.rounds < 1 or options.processes < 1:
        parser.error("--rounds and --processes must be at least 1")
    if options.steps < 1 or options.warmup < 1 or options.micro_batches < 1:
        parser.error("--steps, --warmup and --micro-batches must be at least 1")
    return options


def peak_of(config: Config, platform: Platform, options: argparse.Namespace) -> float | None:
    """Peak FLOP/s of a device."""
    peak = options.peak or config.logging.peak_tflops or peak_tflops(platform.device_name)
    return peak * 1e12 if peak else None


def median_rate(flops: list[float], result: Timed, peak: float | None = 1.0) -> float | None:
    """Median over steps of FLOP/s on each device, as a share of the peak."""
    import torch
    from megatron.core import parallel_state

    if result.note or not peak:
        return None
    share = parallel_state.get_data_parallel_world_size() / torch.distributed.get_world_size()
    return statistics.median(work * share / seconds / peak for work, seconds in zip(flops, result.step))


def save(config: Config, platform: Platform, results: dict[str, Timed], options: argparse.Namespace) -> None:
    """Write what there is so far into the file that was asked for."""
    if not options.json or int(os.environ.get("RANK", "0")):
        return
    peak, channels = peak_of(config, platform, options), expected_geometry(config.codec).channels
    longest = longest_row(config, frame_of(options.frame, config))
    rows = {
        name: {**dataclasses.asdict(result), "mfu": median_rate(result.model, result, peak)}
        for name, result in results.items()
    }
    facts = {
        "layers": config.model.num_layers,
        "recompute": config.parallel.recompute,
        "recompute_layers": config.parallel.recompute_layers,
        # GiB, as the device's allocator counts.
        "estimate": rank_memory(config, channels, int(os.environ.get("WORLD_SIZE", "1")), longest).allocated / 2**30,
    }
    options.json.write_text(json.dumps({**facts, "backends": rows}), encoding="utf-8")


def table(
    config: Config, platform: Platform, results: dict[str, Timed], options: argparse.Namespace, left_out: int
) -> str:
    """Markdown."""
    import torch
    from megatron.core import parallel_state

    from megatron_videogpt.model.layers import describe_kernels

    model, layout, peak = config.model, config.parallel, peak_of(config, platform, options)
    channels = expected_geometry(config.codec).channels
    parameters = sum(component_parameters(parameter_table(config), model, channels).values())
    recompute = layout.recompute + (f" of {layout.recompute_layers} layers" if layout.recompute_layers else "")
    fewer = f" ({left_out} layers left out to fit the memory)" if left_out else ""
    tokens = next((result.tokens for result in results.values() if not result.note), [0])
    span = f"{min(tokens):,}" if min(tokens) == max(tokens) else f"{min(tokens):,} to {max(tokens):,}"
    lines = [
        f"{platform.device_name}, torch {torch.__version__}; {torch.distributed.get_world_size()} "
        f"process(es): TP {layout.tensor}{'+SP' * layout.sequence}, "
        f"CP {layout.context}, PP {layout.pipeline}; {parameters / 1e9:.3g} G parameters, {model.num_layers} "
        f"layers{fewer}, {config.train.precision}, "
        f"recompute {recompute}; {span} tokens a step and replica; {options.steps} steps, medians"
        + (f"; peak {peak / 1e12:g} TFLOP/s" if peak else "; peak unknown (--peak, tools/measure_peak.py)"),
        f"layers: {describe_kernels(platform.name, model)}",
        "",
        markdown(COLUMNS, []),
    ]
    for name, result in results.items():
        if result.note:
            lines.append(f"| {name} | not run: {result.note} {'| ' * 12}|")
            continue
        step, *parts = (
            statistics.median(x)
            for x in (result.step, result.prepare, result.forward, result.backward, result.optimizer)
        )
        rate = (
            statistics.median(count / seconds for count, seconds in zip(result.tokens, result.step))
            * parallel_state.get_data_parallel_world_size()
        )
        used = [f"{median_rate(flops, result, peak):.1%}" if peak else "" for flops in (result.model, result.hardware)]
        times = " | ".join(f"{1e3 * part:.1f}" for part in parts)
        lines.append(
            f"| {name} | {1e3 * step:.1f} | {rate:,.0f} | {median_rate(result.model, result) / 1e12:.3g} | "
            f"{' | '.join(used)} | {times} | "
            f"{1e3 * result.building:.2f} | {result.building / step:.2%} | {result.memory:.2f} |"
        )
        if result.waits is not None:
            lines.append(f"| | host waits in a step: {', '.join(result.waits) or 'none'} {'| ' * 12}|")
    return "\n".join(lines)


def main() -> None:
    """Measure every backend and print a Markdown table."""
    options = arguments()
    if options.against:
        print(f"{command()}\n\n{compare(options.against, sys.argv[1:], options.rounds, options.processes)}")
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = load_checked(options.config, options.overrides, world)
    platform = activate(config.train.platform, config.train.adaptor)
    if config.train.precision == "auto":
        config = in_precision(config, "bf16" if platform.bf16 else "fp32")
    import torch

    from megatron_videogpt.model import layers
    from megatron_videogpt.train.cost.timing import resolved
    from tools.measuring.steps import measure_all

    if options.local_layers:
        layers.has_transformer_engine = lambda platform: False
    torch.set_num_threads(
        config.train.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    )
    frame = frame_of(options.frame, config)
    fitting = resolved(config, platform, frame, options.fit)
    results = measure_all(fitting, platform, frame, options, lambda found: save(fitting, platform, found, options))
    if int(os.environ.get("RANK", "0")) == 0:
        left_out = config.model.num_layers - fitting.model.num_layers
        print(f"{command()}\n")
        print(table(fitting, platform, results, options, left_out), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
