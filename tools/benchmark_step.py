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
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.codec.geometry import expected_geometry  # noqa: E402
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.config.check import load_checked  # noqa: E402
from megatron_videogpt.config.derived import in_precision, typical_frame  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.plan.estimate import longest_row  # noqa: E402
from megatron_videogpt.plan.recompute import resolve_recompute  # noqa: E402
from megatron_videogpt.platforms import Platform, activate  # noqa: E402


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


def frame_of(options: argparse.Namespace, config: Config) -> tuple[int, int]:
    """Height and width in pixels."""
    if not options.frame:
        return typical_frame(config)
    parts = options.frame.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--frame {options.frame}: expected HEIGHTxWIDTH in pixels, such as 192x320")
    return int(parts[0]), int(parts[1])


def with_layers(config: Config, layers: int) -> Config:
    """The same with fewer decoder layers."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=layers))


def resolved(config: Config, platform: Platform, frame: tuple[int, int], fit: bool) -> Config:
    """`recompute=auto` resolved for this device; with `fit`, by as many layers fewer as it takes."""
    world, channels = int(os.environ.get("WORLD_SIZE", "1")), expected_geometry(config.codec).channels
    memory = config.parallel.memory_gb * 1e9 or platform.memory_total()
    chosen = (
        dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, recompute="auto")) if fit else config
    )
    for layers in range(config.model.num_layers, 0, -config.parallel.stages):
        try:
            return resolve_recompute(with_layers(chosen, layers), world, channels, memory, frame)
        except UserError:
            if not fit:
                raise
    raise UserError(
        f"not even {config.parallel.stages} layers of this model and rows of "
        f"{longest_row(config, frame).tokens:,.0f} tokens fit {memory / 1e9:.0f} GB"
    )


def draw_clips(config: Config, lengths: str, step: int) -> tuple[int, ...]:
    """Frames of the clips of a sample."""
    from tools.benchmark_masks import Split

    split = Split(config.data.frames, config.data.clips, last=int(lengths == "fixed" and config.data.clips[1] > 1))
    return split.draw(random.Random(0 if lengths == "fixed" else step))


def synthetic(config: Config, frame: tuple[int, int], options: argparse.Namespace, step: int) -> list[list[Any]]:
    """Samples of each micro-batch of a step: latents of noise."""
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal

    codec = expected_geometry(config.codec)
    shape = (config.data.frames, codec.channels, frame[0] // codec.spatial_stride, frame[1] // codec.spatial_stride)
    keys = [step * 1000 + number for number in range(options.micro_batches * config.train.micro_batch_size)]
    samples = [
        Sample(
            key=key,
            name=str(key),
            mean=normal(key, "latents", shape),
            logvar=None,
            clips=draw_clips(config, options.lengths, key),
        )
        for key in keys
    ]
    return [
        samples[start : start + config.train.micro_batch_size]
        for start in range(0, len(samples), config.train.micro_batch_size)
    ]


def build(config: Config, platform: Platform) -> tuple[list[Any], Any, Any]:
    """(wrapped chunks, optimizer, objective), weights filled with noise on the device: start values from names take
    minutes for large models.
    """
    import torch

    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.optimizer import build_optimizer, wrap

    world.start(platform, config.parallel)
    chunks = [
        build_network(config, expected_geometry(config.codec).channels, platform, "ranged", number)
        for number in range(config.parallel.virtual_pipeline)
    ]
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=config.model.init_std)
    wrapped = wrap(config, chunks)
    return wrapped, build_optimizer(config, wrapped), build_objective(config)


def use_backend(chunks: list[Any], name: str) -> None:
    """Let all layers attend with a backend, or with the dense mask."""
    from megatron_videogpt import attention
    from megatron_videogpt.model import core_attention
    from tools.benchmark_timing import dense_attend

    def attend(backend: str, *args: Any, **hints: Any) -> Any:
        return dense_attend(*args) if backend == "dense" else attention.attend(backend, *args, **hints)

    core_attention.attend = attend
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, core_attention.IntervalAttention):
                module.backend = name


def waits(call: Callable[[], Any]) -> list[str]:
    """Places, with how often, at which the host waited for the GPU while `call` ran (CUDA's own warnings)."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(item.filename).name}:{item.lineno}" for item in caught if "synchroniz" in str(item.message)]
    return [f"{place} ({places.count(place)}x)" for place in sorted(set(places))]


def main() -> None:
    """Measure every backend and print a Markdown table."""
    options = arguments()
    if options.against:
        from tools.benchmark_against import compare

        print(
            "`python tools/benchmark_step.py "
            f"{' '.join(sys.argv[1:])}`\n\n{compare(options.against, sys.argv[1:], options.rounds, options.processes)}"
        )
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = load_checked(options.config, options.overrides, world)
    platform = activate(config.train.platform)
    if config.train.precision == "auto":
        config = in_precision(config, "bf16" if platform.bf16 else "fp32")
    import torch

    from tools.benchmark_step_timing import measure_all, table

    torch.set_num_threads(
        config.train.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    )
    frame = frame_of(options, config)
    fitting = resolved(config, platform, frame, options.fit)
    results = measure_all(fitting, platform, frame, options)
    if int(os.environ.get("RANK", "0")) == 0:
        left_out = config.model.num_layers - fitting.model.num_layers
        print(f"`python tools/benchmark_step.py {' '.join(sys.argv[1:])}`\n")
        print(table(fitting, platform, results, options, left_out), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
