"""What `python -m megatron_videogpt check` prints: model, layout, sequences, memory and FLOPs of a configuration."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .check import missing_paths
from .estimate import (
    Work,
    clip_work,
    component_parameters,
    dp_size,
    expected_work,
    frame_side,
    geometry,
    rank_memory,
    rank_parameters,
    training_flops,
    typical_frame,
)
from .schema import Config


def in_units(value: float, step: int, units: str, suffix: str = "") -> str:
    """A number with three digits and the unit that keeps it readable: ``in_units(3.7e9, 1000, " kMGT")`` -> "3.70 G"."""
    for unit in units:
        if abs(value) < step or unit == units[-1]:
            return f"{value:.3g} {unit.strip()}{suffix}".rstrip()
        value /= step
    raise AssertionError("units is never empty")


def flops(value: float) -> str:
    """FLOPs with a unit."""
    return in_units(value, 1000, " kMGTPEZ", "FLOP")


def size(value: float) -> str:
    """Bytes with a unit."""
    return in_units(value, 1024, " KMGTP", "iB" if value >= 1024 else "B")


def print_report(config: Config, world_size: int, console: Console | None = None) -> None:
    """Print the tables for a run of `world_size` processes; the configuration must have passed `check_config`."""
    console = console or Console()
    codec = geometry(config.codec)
    cell = codec.spatial_stride * config.model.patch_size
    height, width = typical_frame(config)
    frames = config.data.frames
    work = expected_work(frames, config.data.clips, (height // cell) * (width // cell))
    longest = longest_work(frames, config.data.clips, (frame_side(config) // cell) ** 2)
    console.print(_model_table(config, codec.channels))
    console.print(_layout_table(config, world_size))
    console.print(_work_table(config, codec.channels, work, longest, (height, width), world_size))
    console.print(_memory_table(config, codec.channels, world_size, longest))
    for line in missing_paths(config):
        console.print(f"note, before training: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def longest_work(frames: int, clips: tuple[int, int], patches: int) -> Work:
    """The longest sequence that the split can give: a last clip of one frame (of all frames where there is one clip only)."""
    return clip_work((frames - 1, 1) if clips[1] > 1 else (frames,), patches)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _model_table(config: Config, channels: int) -> Table:
    table = _table("Model", "component", "parameters")
    counts = component_parameters(config.model, channels)
    for name, count in counts.items():
        table.add_row(f"{name} x {config.model.num_layers}" if name == "decoder.layers" else name, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(counts.values()):,}", style="bold")
    table.add_row("on the fullest rank", f"{rank_parameters(config, channels):,}")
    return table


def _layout_table(config: Config, world_size: int) -> Table:
    table = _table("Layout", "", "")
    layout, dp = config.parallel, dp_size(config, world_size)
    table.add_row("processes", f"TP {layout.tensor} x PP {layout.pipeline} x DP {dp} = {world_size}")
    table.add_row("sequence parallelism", "on" if layout.sequence else "off")
    table.add_row("recompute", layout.recompute)
    per_rank = config.train.global_batch_size // (dp * config.train.micro_batch_size)
    table.add_row("global batch", f"{config.train.global_batch_size} = {dp} DP x {config.train.micro_batch_size} per micro-batch x {per_rank} micro-batches")
    table.add_row("precision", config.train.precision)
    return table


def _work_table(config: Config, channels: int, work: Work, longest: Work, frame: tuple[int, int], world_size: int) -> Table:
    height, width = frame
    assumed = "" if config.data.source == "physics" else ", 16:9 assumed"
    table = _table("Sequences and work", "", f"mean, {width}x{height}{assumed}", "longest")
    table.add_row("noisy frames", f"{work.noisy:.1f}", f"{longest.noisy:.1f}")
    table.add_row("clean frames", f"{work.clean:.1f}", f"{longest.clean:.1f}")
    table.add_row("patches per frame", f"{work.patches}", f"{longest.patches}")
    table.add_row("tokens per sample", f"{work.tokens:,.0f}", f"{longest.tokens:,.0f}")
    table.add_row("mask density", f"{work.pairs / work.tokens**2:.3f}", f"{longest.pairs / longest.tokens**2:.3f}")
    per_sample = [training_flops(config.model, channels, item.tokens, item.pairs) for item in (work, longest)]
    table.add_row("model FLOPs per sample", *map(flops, per_sample))
    batch = config.train.global_batch_size
    table.add_row("model FLOPs per step", *(flops(value * batch) for value in per_sample))
    table.add_row("model FLOPs per step and process", *(flops(value * batch / world_size) for value in per_sample))
    table.add_row("model FLOPs of the run", flops(per_sample[0] * batch * config.train.steps), "")
    return table


def _memory_table(config: Config, channels: int, world_size: int, longest: Work) -> Table:
    memory = rank_memory(config, channels, world_size, longest.tokens * config.train.micro_batch_size)
    table = _table("Memory of the fullest rank (rough)", "", "")
    for name in ("parameters", "gradients", "optimizer", "activations"):
        table.add_row(name, size(getattr(memory, name)))
    table.add_section()
    table.add_row("total, without kernels' workspaces", size(memory.total), style="bold")
    return table
