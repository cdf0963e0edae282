"""What `scaling plan` prints: rules, models, what they take, and what a fit will be given."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table

from ...plan.report import duration, flops, size, table_of
from ..runs import DECODER, DIVERGED, LOSS
from .cost import Priced, ladder_hours
from .grid import label
from .made import Plan, times_largest, totals
from .options import PLANNED
from .rules import told

WIDE = 150
"""Columns where the width of the screen is not known."""


def console_of() -> Console:
    """A console that does not cut tables where the output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def print_plan(plan: Plan, console: Console) -> None:
    """All of it."""
    console.print(_rules(plan))
    console.print(_models(plan))
    console.print(_costs(plan))
    for line in remarks(plan):
        console.print(line, markup=False, soft_wrap=True)


def _rules(plan: Plan) -> Table:
    table = table_of("Rules", "", "")
    table.columns[1].justify, table.show_header = "left", False
    for what, rule in told(plan.base, plan.ladder):
        table.add_row(what, rule)
    return table


def _models(plan: Plan) -> Table:
    columns = (
        "N",
        "without ends",
        "width",
        "layers",
        "heads",
        "batch",
        "tokens",
        "steps",
        "points at",
        "rate",
        "beta2",
    )
    table = table_of("Runs", "run", *columns, "warm-up", caption="batch: samples a step, and their tokens")
    for one in plan.kept:
        run, cost, optimizer = one.run, one.cost, one.run.config.optimizer
        model, samples = run.config.model, run.config.train.global_batch_size
        table.add_row(
            _name(one),
            label(run.counts.all),
            label(run.counts.decoder),
            str(model.hidden_size),
            str(model.num_layers),
            str(model.num_attention_heads),
            f"{samples} = {label(samples * cost.sample_tokens)}",
            label(cost.tokens),
            f"{run.points[-1]:,}",
            "end" if len(run.points) == 1 else " ".join(map(str, run.points)),
            f"{optimizer.lr:.3g}",
            f"{optimizer.betas[1]:g}",
            str(optimizer.warmup_steps),
        )
    return table


def _name(one: Priced) -> str:
    return f"{one.run.name} (held out)" if one.run.held_out else one.run.name


def _costs(plan: Plan) -> Table:
    columns = ("FLOPs", "6 N D", "ratio", "codec besides", "devices", "peak memory", "time")
    caption = (
        "FLOPs: forward and backward, attention on attended pairs, nothing computed again; best layout: the planner's, "
        "with its estimated MFU"
    )
    table = table_of("Cost", "run", *columns, "device hours", "MFU", "best layout", caption=caption)
    for one in plan.kept:
        cost = one.cost
        table.add_row(
            _name(one),
            flops(cost.flops),
            flops(cost.six_nd),
            f"{cost.flops / cost.six_nd:.2f}",
            _known(cost.codec),
            str(cost.devices),
            size(cost.memory.total),
            time(cost.seconds),
            f"{cost.device_hours:.3g}",
            f"{cost.speed.mfu:.2f}",
            "none fits" if cost.best is None else f"{layout(one)} {cost.best.mfu:.2f}",
        )
    table.add_section()
    sums = totals(plan.kept)
    every = sums["flops"] or 0.0, sums["six_nd"] or 1.0
    hours = f"{sums['device_hours']:.3g}"
    ratio = f"{every[0] / every[1]:.2f}"
    row = ("all", flops(every[0]), flops(every[1]), ratio, _known(sums["codec_flops"]), "", "", "", hours, "", "")
    table.add_row(*row, style="bold")
    return table


def _known(codec: float | None) -> str:
    return "not known" if codec is None else flops(codec)


def layout(one: Priced) -> str:
    """The planner's layout in a few letters: TP 2 + SP, CP 1, PP 4 -> "T2s P4"."""
    assert one.cost.best is not None
    parallel = one.cost.best.config.parallel
    sizes = (
        ("T", parallel.tensor),
        ("C", parallel.context),
        ("P", parallel.pipeline),
        ("V", parallel.virtual_pipeline),
    )
    words = [f"{axis}{count}{'s' * (axis == 'T' and parallel.sequence)}" for axis, count in sizes if count > 1]
    words.append(f"D{one.cost.best.world_size // parallel.model_size}")
    return " ".join([*words, *([] if parallel.recompute == "none" else [parallel.recompute])])


def time(seconds: float) -> str:
    """Of a run, with a unit that suits it."""
    if seconds < 60:
        return duration(seconds)
    if seconds < 3600:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 2 * 86400 else f"{seconds / 86400:.3g} days"


def remarks(plan: Plan) -> list[str]:
    """What stands below the tables, a line each."""
    ladder, lines = plan.ladder, []
    for one in plan.dropped:
        lines.append(
            f"left out for the budget: {_name(one)}: {flops(one.cost.flops)}, {one.cost.device_hours:.3g} hours"
        )
    if not plan.held_out and any(one.run.held_out for one in plan.dropped):
        lines.append("nothing is held out any more: the budget paid for no run that the ladder holds out")
    for one in plan.held_out:
        lines.append(
            f"held out: {one.run.name}: {times_largest(plan, one):.3g} times the compute of the largest that is fitted"
        )
    # Each run that has begun names its own file.
    sources = sorted({one.cost.speed.source.partition(", the median")[0] for one in plan.kept})
    besides = f", and {ladder.overhead:g} s a step besides (ladder.overhead)" if ladder.overhead else ""
    hours = ladder_hours(plan.kept, ladder)
    lines.append(f"time: {'; '.join(sources)}{besides}; the codec, validation and saving are not in it")
    lines.append(
        f"{len(plan.kept)} runs, {plan.points} points, {time(3600 * hours)} on {ladder.gpus} device"
        f"{'s' * (ladder.gpus > 1)}" + ("" if ladder.layout == PLANNED else "; runs have the recipe's layout")
    )
    lines.append(
        f"a run that diverged is left out: its {LOSS} is no finite number or above {DIVERGED:g} times its lowest "
        "before, or all of its last steps were skipped (optimizer.max_skipped)"
    )
    lines.append(f"wrote {plan.output / 'ladder.json'} and {plan.output / 'configs'}")
    lines.append(f"next: {command('run', str(plan.source))}")
    lines.append(f"then: {fit_command(plan)}")
    return lines


def fit_command(plan: Plan) -> str:
    """That fits what the ladder will have measured."""
    words = ["fit", str(plan.output)]
    if plan.held_out:
        words += ["--hold-out", str(len(plan.held_out))]
    if plan.ladder.parameters == DECODER:
        words += ["--parameters", DECODER]
    return command(*words)


def command(*words: str) -> str:
    """A command to paste."""
    return f"python -m megatron_videogpt scaling {shlex.join(words)}"
