"""The worker of `cluster_check.sh`: one process per device under torchrun, one Markdown report from rank 0 (see that
script's --help).
"""

from __future__ import annotations

import argparse
import os
import platform as host
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths  # noqa: E402
from tools.cluster_session import TIMED, TINY, WARM_UP, Report, Session, longest_of  # noqa: E402

LAYOUTS = (
    {"tensor": 2},
    {"tensor": 2, "sequence": True},
    {"context": 2},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"tensor": 2, "sequence": True, "context": 2},
    {"tensor": 2, "sequence": True, "pipeline": 2, "virtual_pipeline": 2},
    {"tensor": 2, "context": 2, "pipeline": 2},
    {"tensor": 4, "sequence": True},
    {"context": 4},
    {"pipeline": 4},
    {"tensor": 8, "sequence": True},
    {"context": 8},
)
"""Compared with data parallelism alone, as far as the devices reach."""
TOLERANCE = {"fp32": (1e-4, 1e-3), "bf16": (5e-3, 1e-2)}
"""Relative, of loss and gradient norm; TF32 and other kernels make float32 coarser on a device than docs/parity.md
shows on a CPU.
"""
STEPS, CHANNELS = 5, 4


def fitting(world: int) -> list[dict[str, Any]]:
    """The layouts of `LAYOUTS` that `world` devices can form, data parallelism alone first."""
    from megatron_videogpt.config.schema import ParallelConfig

    sizes = [(options, ParallelConfig(**options)) for options in LAYOUTS]
    return [{}] + [options for options, layout in sizes if world % layout.model_size == 0]


def name_of(options: dict[str, Any], world: int) -> str:
    """``TP2+SP x PP2 x VPP2 x DP1``."""
    from megatron_videogpt.config.schema import ParallelConfig

    layout = ParallelConfig(**options)
    tensor = f"TP{layout.tensor}{'+SP' if layout.sequence else ''}"
    parts = [
        (layout.tensor, tensor),
        (layout.context, f"CP{layout.context}"),
        (layout.pipeline, f"PP{layout.pipeline}"),
    ]
    parts += [(layout.virtual_pipeline, f"VPP{layout.virtual_pipeline}")]
    return " x ".join([text for size, text in parts if size > 1] + [f"DP{world // layout.model_size}"])


def check_equality(platform: Any, layouts: list[dict[str, Any]], report: Report, left: Callable[[], float]) -> bool:
    """Losses and gradient norms of five steps in these layouts against the first, data parallelism alone."""
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.platforms.world import world_size

    report.add(
        "",
        "## Layouts against data parallelism alone",
        "",
        "| layout | precision | loss | gradient norm | verdict |",
        "|---|---|---|---|---|",
    )
    sound, world = True, world_size()
    for precision, (of_loss, of_norm) in TOLERANCE.items():
        reference: list[tuple[float, float]] = []
        for options in layouts:
            if left() < 0:
                report.add(f"| {name_of(options, world)} | {precision} | | | not run: out of time |")
                continue
            values = parse_overrides(
                [
                    *TINY.split(),
                    f"train.precision={precision}",
                    f"train.global_batch_size={2 * world}",
                    f"train.platform={platform.name}",
                ]
            )
            config = config_from_dict({**values, "data": {"frames": 4, "clips": [1, 4]}, "parallel": options})
            session = Session(config, CHANNELS, (2, 3), platform, spread=True)
            trace = [session.step(session.rows()) for _ in range(STEPS)]
            session.close()
            reference = reference or trace
            worst = [max(abs(a[i] - b[i]) / abs(b[i]) for a, b in zip(trace, reference)) for i in (0, 1)]
            good = worst[0] <= of_loss and worst[1] <= of_norm
            sound &= good
            verdict = (
                "reference" if not options else "equal" if good else f"DIFFERENT (allowed {of_loss:g}, {of_norm:g})"
            )
            report.add(f"| {name_of(options, world)} | {precision} | {worst[0]:.1e} | {worst[1]:.1e} | {verdict} |")
    return sound


def measure_speed(config: Any, platform: Any, world: int, report: Report, left: Callable[[], float]) -> Any:
    """Tokens/s, exposed communication and peak memory of the configuration's own layout and of the planner's best;
    returns the last session.
    """
    import torch

    from megatron_videogpt.codec.geometry import expected_geometry
    from megatron_videogpt.config.derived import typical_frame
    from megatron_videogpt.plan.estimate import objective_work
    from megatron_videogpt.plan.memory import rank_memory
    from megatron_videogpt.plan.planner import propose
    from megatron_videogpt.plan.recompute import resolve_recompute
    from tools.exposed import profiled

    codec, frame = expected_geometry(config.codec), typical_frame(config)
    cell = codec.spatial_stride * config.model.patch_size
    grid, memory = (frame[0] // cell, frame[1] // cell), config.parallel.memory_gb * 1e9 or platform.memory_total()
    # Buffers of communication count where the platform has them beside its allocator.
    config = replace(config, train=replace(config.train, platform=platform.name))
    work = objective_work(config).expected(frame)
    plans = [plan.config for plan in propose(config, codec.channels, world, work, memory, frame, most=3)]
    report.add(
        "",
        f"## Speed and memory: {config.model.num_layers} layers x {config.model.hidden_size}, "
        f"{config.data.frames} frames of {frame[1]}x{frame[0]}",
        "",
    )
    report.add(
        "| layout | recompute | tokens/s per device | s/step | exposed communication | peak GB | estimate GB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    )
    session = None
    for layout in [resolve_recompute(config, world, codec.channels, memory, frame), *plans]:
        options = vars(layout.parallel)
        name = name_of(
            {k: options[k] for k in ("tensor", "sequence", "context", "pipeline", "virtual_pipeline")}, world
        )
        if left() < 0:
            report.add(f"| {name} | {layout.parallel.recompute} | not run: out of time | | | | | |")
            continue
        if session is not None:
            session.close()
        session = Session(layout, codec.channels, grid, platform, spread=False)
        platform.reset_memory_peak()
        batches = [session.rows() for _ in range(WARM_UP + TIMED)]
        for rows in batches[:WARM_UP]:
            session.step(rows)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for rows in batches[WARM_UP:]:
            session.step(rows)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / TIMED
        tokens = sum(row.length for rows in batches[WARM_UP:] for row in rows) * session.replicas / TIMED
        peak = everywhere(float(platform.memory_peak()))
        exposed = everywhere(profiled(lambda: session.step(batches[-1]), platform))  # noqa: B023
        estimate = rank_memory(layout, codec.channels, world, longest_of(layout, grid[0] * grid[1])).allocated
        memory_text = "see tools/measure_memory.py | | "
        if platform.name != "cpu" and max(peak):  # a stand-in for a device has no allocator
            memory_text = f"{max(peak) / 1e9:.1f} | {estimate / 1e9:.1f} | {estimate / max(peak):.2f}"
        waits = f"{statistics.median(exposed):.3f} s ({statistics.median(exposed) / seconds:.0%})"
        if platform.name == "npu":
            waits = "not measured: torch.profiler sees no NPU kernels"
        report.add(
            f"| {name} | {layout.parallel.recompute} | {tokens / seconds / world:,.0f} | {seconds:.2f} | "
            f"{waits} | {memory_text} |"
        )
    return session


def everywhere(value: float) -> list[float]:
    """A number of every rank, on every rank."""
    import torch

    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def time_checkpoint(session: Any, folder: Path, report: Report) -> None:
    """Seconds to save and to load a checkpoint of the last layout."""
    import torch

    from megatron_videogpt.checkpoint.load import load_checkpoint
    from megatron_videogpt.checkpoint.save import Saver
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.train.run import State

    config = replace(session.config, train=replace(session.config.train, output=str(folder)))
    saver, seconds = Saver(config, session.bare, session.optimizer, None, "cluster_check"), {}
    for name, action in (
        ("save", lambda: saver.save(vars(State(step=1, updates=WARM_UP + TIMED + 1)), must=True)),
        ("load", lambda: load_checkpoint(find_checkpoint(folder), session.bare, session.optimizer, None)),
    ):
        torch.distributed.barrier()
        started = time.perf_counter()
        action()
        torch.distributed.barrier()
        seconds[name] = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    report.add(
        "",
        "## Checkpoint",
        "",
        f"{size / 1e9:.2f} GB in {folder.parent}: saved in {seconds['save']:.1f} s, loaded in {seconds['load']:.1f} s.",
    )


def main() -> int:
    """Entry point of every process; exit code 1 when a layout differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", metavar="FILE.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value")
    parser.add_argument("--output", type=paths.path, required=True)
    parser.add_argument(
        "--scratch",
        type=paths.path,
        required=True,
        help="a folder that all nodes share, for a checkpoint that is deleted afterwards",
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--layouts", type=int, default=len(LAYOUTS), help="compared, beside data parallelism")
    args = parser.parse_args()
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    from megatron_videogpt.config.check import load_checked

    config = load_checked(args.file, args.overrides, world)
    from megatron_videogpt.platforms import activate

    platform = activate(config.train.platform, config.train.adaptor)
    import torch
    from megatron.core import __version__ as megatron

    torch.set_num_threads(config.train.threads or 1)
    from megatron_videogpt.platforms import world as processes

    deadline = time.monotonic() + 60 * args.minutes - 60
    processes.start(platform, config.parallel)
    left = lambda: min(everywhere(deadline - time.monotonic()))  # noqa: E731
    report = Report(args.output, rank == 0)
    versions = f"torch {torch.__version__}, megatron-core {megatron}, Python {host.python_version()}"
    report.add(
        "# Cluster check",
        "",
        f"{datetime.now():%Y-%m-%d %H:%M}, {world} x {platform.device_name} over {platform.backend}; {versions}",
        "",
    )
    report.add(f"`bash tools/cluster_check.sh {args.file} {' '.join(args.overrides)}`")
    from megatron.core import parallel_state

    from megatron_videogpt.train.resolved import with_fusion, with_precision

    control = processes.control_group(config.train.timeout_minutes)
    config = with_fusion(with_precision(config, None, platform, control), platform, control)
    parallel_state.destroy_model_parallel()
    sound = check_equality(platform, fitting(world)[: 1 + args.layouts], report, left)
    session, folder = measure_speed(config, platform, world, report, left), args.scratch / "cluster_check_checkpoint"
    if session is not None and left() > 0:
        time_checkpoint(session, folder, report)
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    processes.stop()
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
