"""What `python -m megatron_videogpt check FILE.toml --data` prints: videos, sequences, rows and balance of the data
that a run would read.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..codec.geometry import expected_geometry
from ..config.derived import dp_size
from ..config.schema import Config
from ..data.bad import REASONS
from ..data.conditioning import Conditioning
from ..data.mixture import Mixture
from ..data.packing import StepPlanner, check_positions
from ..data.plans import Plans
from ..data.sample_work import SampleWork
from ..data.sources.open import Source, open_source
from ..data.splits import Split, VideoSplit
from ..objective.build import work_of
from .balance import DealingStatistics, measure
from .report import table_of

STEPS = 50
LOOKED_AT = 100_000  # videos of a data set whose sizes and durations are read, evenly spread
SHOWN = 6  # picture sizes, most frequent first
MUCH = 0.03  # padding or imbalance from which advice is given


def print_data_report(config: Config, world_size: int, console: Console | None = None, steps: int = STEPS) -> None:
    """Open the configured data and print tables about it and about the first `steps` steps of a run of `world_size`
    processes; no picture is read.

    Raises:
        ValueError: one line: no data there, or a batch or row that it does not fit.
    """
    console = console or Console()
    codec = expected_geometry(config.codec)
    source = open_source(config.data, codec, Conditioning(config.condition))
    ranks = dp_size(config, world_size)
    check_positions(config, work_of(config, codec), source.train, source.validation)
    planner = StepPlanner(source.train, config.train.seed, config, work_of(config, codec), ranks)
    batch = config.train.global_batch_size
    columns = (TextColumn("planning steps"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        configured, naive = measure(planner, bar.track(range(steps)))
    plans = source.train.plans(config.train.seed, np.arange(min(steps * batch, LOOKED_AT)))
    console.print(_videos_table(config, source))
    if source.left_out:
        console.print(_rejected_table(source.left_out))
    console.print(_sequences_table(plans, planner.work))
    console.print(_rows_table(config, configured, naive, ranks))
    console.print(
        f"advice: {advice(config, configured, source.train.largest_tokens(planner.work.longest))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _videos_table(config: Config, source: Source) -> Table:
    names = list(config.data.mixture) or [config.data.path or config.data.source]
    weights = [float(weight) for weight in config.data.mixture.values()] or [1.0]
    parts, held_out = parts_of(source.train), parts_of(source.validation)
    table = table_of("Data", "", *names, caption="; ".join(source.notes))
    if len(names) > 1:
        table.add_row("share of the samples", *(f"{weight / sum(weights):.1%}" for weight in weights))
    for title, splits in (("videos", parts), ("  held out for validation", held_out)):
        table.add_row(
            title, *(f"{len(part.items):,}" if isinstance(part, VideoSplit) else "generated" for part in splits)
        )
    table.add_row("samples of an epoch", *(f"{len(part):,}" for part in parts))
    for title, *values in zip(
        ("seconds, mean", "  median", "  95 %", "  longest"), *(durations(part) for part in parts)
    ):
        table.add_row(title, *(f"{value:.1f}" for value in values))
    return table


def parts_of(split: Split) -> tuple[Split, ...]:
    """The data sets of a mixture; any other split is its own."""
    return split.splits if isinstance(split, Mixture) else (split,)


def durations(split: Split) -> list[float]:
    """Mean, median, 95 % quantile and maximum of the seconds of a data set's videos; nothing for generated ones."""
    if not isinstance(split, VideoSplit):
        return []
    chosen = split.items[:: max(1, len(split.items) // LOOKED_AT)]
    entries: Any = split.collection.entries[chosen]
    seconds = entries["frames"] / np.where(entries["fps"] > 0, entries["fps"], np.nan)
    return [np.nanmean(seconds), *np.nanquantile(seconds, [0.5, 0.95]), np.nanmax(seconds)]


def _rejected_table(left_out: Counter[str]) -> Table:
    table = Table(title="Left out by the index", title_justify="left", title_style="bold")
    for column in ("kind", "videos", "what it means"):
        table.add_column(column, justify="right" if column == "videos" else "left")
    for kind, count in left_out.most_common():
        table.add_row(kind, f"{count:,}", REASONS[kind])
    return table


def _sequences_table(plans: Plans, work: SampleWork) -> Table:
    table = table_of(f"Sequences, {len(plans):,} samples", "", "mean", "median", "95 %", "most")
    clips = plans.cuts.sum(axis=1) + 1
    for name, values in (("frames", plans.count), ("clips", clips), ("frame interval", plans.interval)):
        table.add_row(
            name,
            f"{values.mean():.1f}",
            *(f"{value:.0f}" for value in (*np.quantile(values, [0.5, 0.95]), values.max())),
        )
    counts = work.of(plans)
    for name, values in (("tokens", counts.tokens), ("attended pairs", counts.pairs)):
        table.add_row(
            name, *(f"{value:,.0f}" for value in (values.mean(), *np.quantile(values, [0.5, 0.95]), values.max()))
        )
    sizes = Counter(zip(plans.width.tolist(), plans.height.tolist())).most_common()
    shown = [f"{width}x{height} {count / len(plans):.1%}" for (width, height), count in sizes[:SHOWN]]
    rest = sum(count for _, count in sizes[SHOWN:])
    table.caption = f"frames after resizing: {', '.join(shown)}" + (
        f", {len(sizes) - SHOWN} others {rest / len(plans):.1%}" if rest else ""
    )
    return table


def _rows_table(config: Config, configured: DealingStatistics, naive: DealingStatistics, ranks: int) -> Table:
    batch, budget = config.train.global_batch_size, config.data.pack_tokens
    kind = f"rows of at most {budget:,} tokens" if budget else f"{config.train.micro_batch_size} samples a row"
    title = (
        f"Rows of {len(configured.rows)} steps: {batch} samples on {ranks} data parallel rank{'s' * (ranks > 1)}, "
        f"{kind}"
    )
    buckets = f", {config.data.cost_buckets} buckets" if config.data.cost_buckets else ""
    table = table_of(title, "", f"this run: {'by cost' if budget else 'in order'}{buckets}", "naive: in order")
    both = (configured, naive)
    table.add_row("rows of a rank", *(_span(dealt.rows) for dealt in both))
    table.add_row("tokens of a row", *(f"{sum(dealt.padded) / sum(dealt.rows) / ranks:,.0f}" for dealt in both))
    table.add_row("distinct row lengths", *(f"{len(dealt.lengths):,}" for dealt in both))
    table.add_row("padding", *(f"{dealt.padding:.2%}" for dealt in both))
    table.add_section()
    table.add_row(
        "cost imbalance, max/mean rank", *(f"{statistics.mean(dealt.imbalance):.3f}" for dealt in both), style="bold"
    )
    table.add_row("  in the worst step", *(f"{max(dealt.imbalance):.3f}" for dealt in both))
    table.add_row("  lower bound (the costliest sample)", *(f"{statistics.mean(dealt.bound):.3f}" for dealt in both))
    table.add_row("max/mean row of a rank", *(f"{statistics.mean(dealt.row_imbalance):.3f}" for dealt in both))
    table.add_row("planning a step", f"{1e3 * statistics.mean(configured.seconds):.1f} ms", "")
    a_b = (
        f"data.cost=[{config.data.cost[0]:g}, {config.data.cost[1]:g}]"
        if any(config.data.cost)
        else "FLOPs (data.cost: megatron-videogpt cost)"
    )
    table.caption = f"cost: {a_b}, padding included"
    return table


def _span(values: Iterable[int]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def advice(config: Config, dealt: DealingStatistics, longest: int) -> str:
    """One line: what to change where padding or imbalance is above 3 %.  longest: tokens of the longest sample."""
    data = config.data
    imbalance, bound = statistics.mean(dealt.imbalance), statistics.mean(dealt.bound)
    lines = []
    if data.pack_tokens and dealt.padding > MUCH:
        lines.append(
            f"padding {dealt.padding:.1%}: use data.row_lengths={2 * data.row_lengths} (smaller steps between "
            "row lengths)"
        )
    if imbalance > 1 + MUCH and not data.pack_tokens and imbalance - bound > MUCH:
        budget = longest * config.train.micro_batch_size
        lines.append(
            f"imbalance {imbalance:.2f}: deal samples by cost, for example with data.pack_tokens={budget} "
            "(rows as long as the longest now)"
        )
    elif bound > 1 + MUCH and imbalance > 1 + MUCH:
        windows = 4 * data.cost_buckets or 16
        use = (
            f"use data.cost_buckets={windows} (batches of similar cost: docs/data.md) or a larger "
            "train.global_batch_size"
        )
        lines.append(f"imbalance {imbalance:.2f}, and no dealing is below {bound:.2f}: {use}")
    elif imbalance > 1 + MUCH:
        lines.append(
            f"imbalance {imbalance:.2f}: use a larger train.global_batch_size, so that ranks have more "
            "samples to balance"
        )
    return "; ".join(lines) or "padding and imbalance are under 3 %, nothing to change"
