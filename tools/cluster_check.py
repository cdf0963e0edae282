"""The worker of `cluster_check.sh`: one process per device under torchrun, one Markdown report from rank 0 (see that
script's --help).
"""

from __future__ import annotations

import argparse
import os
import platform as host
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TINY = """model.num_layers=8 model.hidden_size=128 model.ffn_hidden_size=256 model.num_attention_heads=8
model.position_table_size=16 optimizer.lr=1e-3 optimizer.warmup_steps=0"""
"""The model that layouts are compared with: heads of 16 channels, the fewest that FlexAttention takes."""
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
STEPS, WARM_UP, TIMED, CHANNELS = 5, 2, 4, 4


@dataclass
class Report:
    """Lines of Markdown, written after every part, so that what was measured survives whatever comes next."""

    path: Path
    writes: bool
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Append lines and rewrite the file."""
        self.lines += lines
        if self.writes:
            self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
            print("\n".join(lines), flush=True)


def samples_of(config: Any, channels: int, grid: tuple[int, int], step: int, count: int) -> list[Any]:
    """A global batch of random latents ``[frames, C, h, w]`` (grid: patches by rows and columns), the same on all
    ranks.
    """
    from megatron_videogpt.data.plans import Sample, split_clips
    from megatron_videogpt.objective.noise import normal

    frames, patch = config.data.frames, config.model.patch_size
    shape = (frames, channels, grid[0] * patch, grid[1] * patch)
    keys = range(step * count, (step + 1) * count)
    return [
        Sample(k, str(k), normal(k, "latents", shape), None, split_clips(random.Random(k), frames, config.data.clips))
        for k in keys
    ]


def longest_of(config: Any, patches: int) -> Any:
    """`Work` of a row of the longest of the samples that `measure_speed` trains on."""
    from megatron_videogpt.data.plans import split_clips
    from megatron_videogpt.objective.next_clip.work import clip_work, packed

    keys = range((WARM_UP + TIMED) * config.train.global_batch_size)
    works = (clip_work(split_clips(random.Random(k), config.data.frames, config.data.clips), patches) for k in keys)
    return packed(max(works, key=lambda work: work.tokens), config.train.micro_batch_size)


class Session:
    """A model in training in one layout on random latents."""

    def __init__(self, config: Any, channels: int, grid: tuple[int, int], platform: Any, spread: bool) -> None:
        from megatron.core import parallel_state

        from megatron_videogpt.model.init import load_released
        from megatron_videogpt.objective.build import build_objective
        from megatron_videogpt.platforms import world
        from megatron_videogpt.train.optimizer import build_optimizer, wrap
        from megatron_videogpt.train.run import build_model
        from tools.layouts_worker import spread as spread_value

        world.start(platform, config.parallel)
        self.config, self.channels, self.grid, self.platform, self.number = config, channels, grid, platform, 0
        self.bare = build_model(config, channels, platform)
        if spread:
            for chunk in self.bare:
                load_released(chunk, config.model, lambda entry: spread_value(entry, config, channels))
        self.chunks = wrap(config, self.bare)
        self.optimizer, self.objective = build_optimizer(config, self.chunks), build_objective(config)
        self.rank, self.replicas = (
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        self.context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()

    def rows(self) -> list[Any]:
        """This rank's shards of the next global batch, on the device."""
        batch, micro = self.config.train.global_batch_size, self.config.train.micro_batch_size
        share = batch // self.replicas
        mine = samples_of(self.config, self.channels, self.grid, self.number, batch)[
            self.rank * share : (self.rank + 1) * share
        ]
        self.number += 1
        whole = [
            self.objective.prepare(mine[i : i + micro], self.config.parallel.row_multiple)
            for i in range(0, share, micro)
        ]
        return [row.shard(*self.context).to(self.platform.device) for row in whole]

    def step(self, rows: list[Any]) -> tuple[float, float]:
        """One optimizer step -> (loss, gradient norm), the same on every rank."""
        from megatron_videogpt.train.optimizer import set_learning_rate
        from megatron_videogpt.train.statistics import named_means, reduce_statistics
        from megatron_videogpt.train.step import train_step

        set_learning_rate(self.optimizer, self.config.optimizer.lr)
        totals, norm, _, _ = train_step(
            self.chunks, self.optimizer, self.objective, rows, self.config.optimizer.clip_grad
        )
        return named_means(reduce_statistics(totals).numbers())["loss"], float(norm)

    def close(self) -> None:
        """Free the memory and the groups, so that the same processes can take another layout."""
        import torch

        from megatron_videogpt.platforms.world import leave_layout

        self.chunks = self.bare = self.optimizer = None  # type: ignore[assignment]
        leave_layout()
        torch.cuda.empty_cache()


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


def check_equality(platform: Any, world: int, report: Report, left: Callable[[], float]) -> bool:
    """Losses and gradient norms of five steps in every layout against data parallelism alone."""
    from megatron_videogpt.config.load import config_from_dict, parse_overrides

    report.add(
        "",
        "## Layouts against data parallelism alone",
        "",
        "| layout | precision | loss | gradient norm | verdict |",
        "|---|---|---|---|---|",
    )
    sound = True
    for precision, (of_loss, of_norm) in TOLERANCE.items():
        reference: list[tuple[float, float]] = []
        for options in fitting(world):
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
    from megatron_videogpt.objective.next_clip.work import expected_work
    from megatron_videogpt.plan.estimate import patches_of
    from megatron_videogpt.plan.memory import rank_memory
    from megatron_videogpt.plan.planner import propose
    from megatron_videogpt.plan.recompute import resolve_recompute
    from tools.exposed import profiled

    codec, frame = expected_geometry(config.codec), typical_frame(config)
    cell = codec.spatial_stride * config.model.patch_size
    grid, memory = (frame[0] // cell, frame[1] // cell), config.parallel.memory_gb * 1e9 or platform.memory_total()
    work = expected_work(config.data.frames, config.data.clips, patches_of(config, frame))
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
        estimate = rank_memory(layout, codec.channels, world, longest_of(layout, grid[0] * grid[1])).total
        memory_text = f"{max(peak) / 1e9:.1f} | {estimate / 1e9:.1f} | {estimate / max(peak):.2f}"
        if platform.name == "cpu":
            memory_text = "see tools/measure_memory.py | | "
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
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--scratch",
        type=Path,
        required=True,
        help="a folder that all nodes share, for a checkpoint that is deleted afterwards",
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    args = parser.parse_args()
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    from megatron_videogpt.config.check import load_checked

    config = load_checked(args.file, args.overrides, world)
    from megatron_videogpt.platforms import activate

    platform = activate(config.train.platform)
    import torch
    from megatron.core import __version__ as megatron

    torch.set_num_threads(config.train.threads or 1)
    from megatron_videogpt.platforms import world

    deadline = time.monotonic() + 60 * args.minutes - 60
    world.start(platform, config.parallel)
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

    parallel_state.destroy_model_parallel()
    sound = check_equality(platform, world, report, left)
    session, folder = measure_speed(config, platform, world, report, left), args.scratch / "cluster_check_checkpoint"
    if session is not None and left() > 0:
        time_checkpoint(session, folder, report)
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    world.stop()
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
