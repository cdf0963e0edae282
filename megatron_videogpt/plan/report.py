"""What `python -m megatron_videogpt check` prints: model, layout, work, memory, communication and time of a
configuration, and better layouts.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from ..codec.geometry import expected_geometry
from ..codec.sharing import who_encodes
from ..config.check_data import missing_paths, unusable_output
from ..config.derived import dp_size, frame_side, require_positions, stage_layers, typical_frame
from ..config.schema import Config
from ..model.flops import attention_flops, component_parameters, training_flops
from ..objective.build import parameter_table
from ..objective.work import Work
from .communication import Links, traffic
from .estimate import longest_row, mean_row, objective_work, rank_parameters
from .memory import POLICIES, RESERVE, Memory, micro_batches, pipeline_memory
from .planner import Plan, Speed, device_of, plan_of, propose, run_days, speed_of
from .recompute import least_recompute, with_policy

MEMORY_GB = 80.0
"""Memory of a device that plans assume when none is named."""


def in_units(value: float, step: int, units: str, suffix: str = "") -> str:
    """A number with three digits and the unit that keeps it readable: ``in_units(3.7e9, 1000, " kMGT")``
    -> "3.70 G".
    """
    for unit in units:
        if abs(value) < step or unit == units[-1]:
            return f"{value:.3g} {unit.strip()}{suffix}".rstrip()
        value /= step
    raise AssertionError("units is never empty")


def flops(value: float) -> str:
    """FLOPs with a unit."""
    return in_units(value, 1000, " kMGTPEZ", "FLOP")


def size(value: float) -> str:
    """Bytes with a decimal unit, as device memory is sold and `--memory-gb` counts it."""
    return in_units(value, 1000, " kMGTP", "B")


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _check_positions(config: Config, frame: tuple[int, int] | None) -> None:
    """UserError where the longest sequence has more positions than the model; how large videos are only their data
    tells (`check --data`), unless `frame` does.
    """
    if frame or config.data.source == "physics":
        sizes = frame or typical_frame(config)
        needed = int(objective_work(config).positions(config.data.frames, sizes))
        require_positions(config, needed, "the longest sequence")


def print_report(
    config: Config,
    world_size: int,
    memory_gb: float | None = None,
    mfu: float | None = None,
    frame: tuple[int, int] | None = None,
    console: Console | None = None,
) -> None:
    """Print the tables for a run of `world_size` processes; the configuration must have passed `check_config`.

    memory_gb: of one device, in 10^9 bytes (None: `parallel.memory_gb`, else 80); mfu: assumed share of the peak (None:
    measured, else assumed); frame: (height, width) in pixels of all frames (None: typical frames for the mean, the
    largest possible for the longest row).
    """
    console = console or Console()
    _check_positions(config, frame)
    channels = expected_geometry(config.codec).channels
    named = memory_gb or config.parallel.memory_gb
    memory_bytes = (named or MEMORY_GB) * 1e9
    work = objective_work(config).expected(frame or typical_frame(config))
    longest = longest_row(config, frame)
    resolved = _resolved(config, world_size, channels, longest, memory_bytes)
    console.print(_model_table(config, channels))
    console.print(_layout_table(config, resolved, world_size))
    console.print(_work_table(config, channels, work, frame, world_size))
    console.print(_memory_table(resolved, channels, world_size, longest))
    if world_size > 1:
        console.print(_traffic_table(resolved, channels, world_size, mean_row(config, world_size, work)))
    console.print(_time_table(resolved, channels, world_size, work, longest, speed_of(config, mfu)))
    _print_plans(
        console, propose(config, channels, world_size, work, memory_bytes, frame), memory_bytes, bool(named), longest
    )
    for line in missing_paths(config) + unusable_output(config):
        console.print(f"note, before training: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _resolved(config: Config, world_size: int, channels: int, longest: Work[float], memory_bytes: float) -> Config:
    """With `auto` replaced by what a run would choose; by full recomputation where not even that fits, so that the
    tables show by how much.
    """
    if config.parallel.recompute != "auto":
        return config
    return least_recompute(config, world_size, channels, longest, memory_bytes) or with_policy(config, "full")


def table_of(title: str, *columns: str, caption: str = "") -> Table:
    """An empty table; the first column is on the left, the others on the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=caption or None, caption_justify="left"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    return table


def _model_table(config: Config, channels: int) -> Table:
    table = table_of("Model", "component", "parameters")
    counts = component_parameters(parameter_table(config), config.model, channels)
    for name, count in counts.items():
        table.add_row(f"{name} x {config.model.num_layers}" if name == "decoder.layers" else name, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(counts.values()):,}", style="bold")
    table.add_row("on the fullest rank", f"{rank_parameters(config, channels):,}")
    return table


def _layout_table(config: Config, resolved: Config, world_size: int) -> Table:
    table = table_of("Layout", "", "")
    layout, dp = config.parallel, dp_size(config, world_size)
    sizes = {"TP": layout.tensor, "CP": layout.context, "PP": layout.pipeline, "DP": dp}
    product = " x ".join(f"{axis} {count}" for axis, count in sizes.items() if axis != "CP" or count > 1)
    table.add_row("processes", f"{product} = {world_size}")
    table.add_row("sequence parallelism", "on" if layout.sequence else "off")
    if layout.pipeline > 1:
        table.add_row("decoder layers by stage", " ".join(map(str, stage_layers(config))))
    table.add_row("recompute", _policy(resolved) + (" (auto)" if layout.recompute == "auto" else ""))
    count = micro_batches(config, world_size)
    batch, budget = config.train.global_batch_size, config.data.pack_tokens
    parts = f"{config.train.micro_batch_size} per micro-batch x {count} micro-batches"
    if budget:
        parts = f"{batch / dp:.3g} on average, packed into about {count} micro-batches of at most {budget:,} tokens"
    table.add_row("global batch", f"{batch} = {dp} DP x {parts}")
    table.add_row("precision", config.train.precision)
    table.add_row("frames encoded by", f"{who_encodes(config)} (data.share_encoding={config.data.share_encoding})")
    return table


def _policy(config: Config) -> str:
    layout = config.parallel
    return layout.recompute + (
        f", {layout.recompute_layers} layers of each pipeline rank" if layout.recompute_layers else ""
    )


def _work_table(
    config: Config, channels: int, work: Work[float], frame: tuple[int, int] | None, world_size: int
) -> Table:
    height, width = frame or typical_frame(config)
    side = frame_side(config)
    largest = f"{width}x{height}" if frame else f"{side}x{side}"
    assumed = "" if frame or config.data.source == "physics" else ", 16:9 assumed (--frame)"
    objective, sizes = objective_work(config), ((height, width), frame or (side, side))
    longest = objective.largest(sizes[1])
    table = table_of("Sequences and work", "", f"mean, {width}x{height}{assumed}", f"longest, {largest}")
    both, model, weights = (work, longest), config.model, objective.weights
    for fact in objective.facts(*sizes):
        table.add_row(*fact)
    table.add_row("tokens per sample", *(f"{item.tokens:,.0f}" for item in both))
    table.add_row("mask density", *(f"{item.pairs / item.tokens**2:.3f}" for item in both))
    table.add_section()
    table.add_row(
        "model FLOPs per token",
        *(flops(training_flops(model, weights, item.tokens, item.pairs) / item.tokens) for item in both),
    )
    table.add_row("  linear", *(flops(weights[0]) for _ in both))
    table.add_row(
        "  attention, attended pairs only", *(flops(attention_flops(model, item.pairs) / item.tokens) for item in both)
    )
    per_sample = [training_flops(model, weights, item.tokens, item.pairs) for item in both]
    batch = config.train.global_batch_size
    table.add_row("model FLOPs per sample", *map(flops, per_sample))
    table.add_row("model FLOPs per step", *(flops(value * batch) for value in per_sample))
    table.add_row("model FLOPs per step and process", *(flops(value * batch / world_size) for value in per_sample))
    table.add_row("model FLOPs of the run", flops(per_sample[0] * batch * config.train.steps), "")
    return table


def _memory_table(config: Config, channels: int, world_size: int, longest: Work[float]) -> Table:
    """The fullest rank under the configured recomputation, then under every policy for all layers."""
    chosen = _fullest(config, channels, world_size, longest)
    every = [_fullest(with_policy(config, policy), channels, world_size, longest) for policy in POLICIES]
    title = (
        f"Memory of the fullest rank: this run, and with each recompute policy; rows of {longest.tokens:,.0f} tokens"
    )
    table = table_of(title, "", "this run", *POLICIES)
    for name in ("parameters", "gradients", "optimizer", "ema", "activations", "working", "communicators"):
        if name not in ("ema", "communicators") or getattr(chosen, name):
            table.add_row(name, *(size(getattr(memory, name)) for memory in (chosen, *every)))
    table.add_section()
    table.add_row("peak", *(size(memory.total) for memory in (chosen, *every)), style="bold")
    if config.parallel.pipeline > 1:
        peaks = [size(memory.total) for memory in pipeline_memory(config, channels, world_size, longest)]
        table.caption = f"peaks of the pipeline ranks: {', '.join(peaks)}"
    return table


def _fullest(config: Config, channels: int, world_size: int, longest: Work[float]) -> Memory:
    return max(pipeline_memory(config, channels, world_size, longest), key=lambda memory: memory.total)


def _traffic_table(config: Config, channels: int, world_size: int, row: Work[float]) -> Table:
    links = Links()
    speeds = f"{links.inside / 1e9:.0f} GB/s inside a node of {links.node} devices, {links.between / 1e9:.0f} GB/s and"
    caption = f"assumed: {speeds} {links.latency_between * 1e6:.0f} us a call between nodes"
    table = table_of(
        "Communication per step and rank", "axis", "what", "ranks", "calls", "sent", "time", "link", caption=caption
    )
    for item in traffic(config, channels, world_size, row, links.node):
        link = "inside a node" if item.inside else "between nodes"
        table.add_row(
            item.axis,
            item.what,
            str(item.group),
            f"{item.calls:,.0f}",
            size(item.size),
            duration(item.seconds(links)),
            link,
        )
    return table


def _time_table(
    config: Config, channels: int, world_size: int, work: Work[float], longest: Work[float], speed: Speed
) -> Table:
    plan = plan_of(config, channels, world_size, work, longest, device_of(config))
    table = table_of("Time", "", "")
    time = plan.time
    if config.parallel.pipeline > 1:
        waiting = time.bubble / time.compute
        table.add_row(
            "pipeline bubble",
            f"{waiting:.1%} of the work, {waiting / (1 + waiting):.1%} of a step without communication",
        )
    table.add_row(
        "estimated step",
        f"{duration(time.total)}: compute {duration(time.compute)}, communication not hidden "
        f"{duration(time.communication)}",
    )
    table.add_row("estimated MFU", f"{plan.mfu:.2f} (a model of kernels and links: docs/planner.md)")
    days, devices = run_days(config, world_size, work, speed), f"{world_size} device{'s' * (world_size > 1)}"
    length = f"{days:.3g} days" if days >= 0.1 else duration(days * 86400)
    table.add_row(
        f"{config.train.steps:,} steps", f"{length} on {devices} at MFU {speed.mfu:.2f} ({speed.source})", style="bold"
    )
    return table


def _print_plans(console: Console, plans: list[Plan], memory_bytes: float, named: bool, longest: Work[float]) -> None:
    """Proposals as a table and as lines to paste, or a line that nothing fits."""
    memory = f"{memory_bytes / 1e9:g} GB" + ("" if named else " (assumed: --memory-gb)")
    if not plans:
        console.print(
            f"No layout fits devices of {memory} with rows of {longest.tokens:,.0f} tokens; use more devices "
            "or shorter samples.",
            soft_wrap=True,
        )
        return
    title = f"Fastest layouts that fit {memory} with {RESERVE:.0%} to spare, by estimated step time"
    table = table_of(title, "", "TP", "CP", "PP", "batch", "recompute", "peak", "bubble", "MFU", "step")
    table.box, table.caption, table.caption_justify = (
        box.SIMPLE_HEAD,
        "PP: stages x chunks; batch: samples x micro-batches, or packed rows",
        "left",
    )
    for number, plan in enumerate(plans, 1):
        layout, time = plan.config.parallel, plan.time
        sizes = (
            f"{layout.tensor}{'+SP' * layout.sequence}",
            str(layout.context),
            f"{layout.pipeline}x{layout.virtual_pipeline}",
        )
        count = micro_batches(plan.config, plan.world_size)
        batch = f"{count} rows" if plan.config.data.pack_tokens else f"{plan.config.train.micro_batch_size}x{count}"
        costs = (
            size(plan.memory.total),
            f"{time.bubble / (time.compute + time.bubble):.0%}",
            f"{plan.mfu:.2f}",
            duration(time.total),
        )
        table.add_row(str(number), *sizes, batch, f"{layout.recompute} {layout.recompute_layers or ''}".strip(), *costs)
    console.print(table)
    for number, plan in enumerate(plans, 1):
        console.print(f"{number}: {' '.join(plan.overrides)}", soft_wrap=True, highlight=False)
