"""`scaling fit`, from its arguments to what it prints and writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config.paths import obstacle
from ..errors import UserError, unusable
from .analysis import FALL, SHARE, Result, Settings, analyse, fits_ahead
from .planned import completed, held_otherwise, planned_in
from .points import Point, Selection, select
from .report import NAMES, About, number, report, span
from .runs import Run, check_alike, find_runs, read_run
from .table import read_table
from .write import write_file, write_numbers, write_settings


def run_fit(args: argparse.Namespace) -> None:
    """Read, fit, print, write; UserError for whatever the user can mend."""
    blocked = obstacle(args.output)
    if blocked:
        raise UserError(f"--output {args.output}: {blocked}")
    console = Console(soft_wrap=True, highlight=False)
    points, runs = _read(args.runs, args.parameters)
    planned = [run for folder in args.runs for run in planned_in(folder)]
    points = completed(points, planned)
    selection = select(points, args.exclude, args.drop_largest, args.hold_out)
    for point in selection.dropped:
        console.print(f"dropped: {point.name}: {point.dropped}", markup=False)
    minded = list(held_otherwise(selection, planned, args.hold_out))
    for line in minded:
        console.print(f"mind: {line}", markup=False)
    settings = Settings(args.bootstrap, args.level, args.seed, tuple(args.compute))
    with _progress(fits_ahead(selection) * args.bootstrap) as told:
        result = analyse(selection, settings, told)
    _print(console, result)
    _write(args, result, runs, minded)
    console.print(f"wrote {args.output / 'report.md'} and what it shows", markup=False)


def _read(given: list[Path], counted: str) -> tuple[list[Point], list[Run]]:
    """Points of tables and of runs, under names of which each is there once, and the runs."""
    points, runs = [], []
    for path in given:
        if path.suffix == ".csv" or path.is_file():
            points += read_table(path)
        else:
            runs += [read_run(folder, counted) for folder in find_runs(path)]
    if points and runs:
        raise UserError(
            f"{given[0]}, ...: runs and tables cannot be fitted together, whose validation sets may differ; fit the "
            "runs first, and join their points.csv with the table"
        )
    check_alike(runs)
    points += [point for run in runs for point in run.points]
    names = [point.name for point in points]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{twice}: two points have this name; give each another (column name, or the folder's name)")
    return points, runs


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar over all replicates on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task, done = bar.add_task("fitting", total=total), dict[str, int]()

        def told(what: str, count: int) -> None:
            done[what] = count
            bar.update(task, completed=sum(done.values()), description=what)

        yield told


def _print(console: Console, result: Result) -> None:
    chosen: Selection = result.selection
    level = f"{result.settings.level:.0%}"
    title = f"L = E + A / N^alpha + B / D^beta, {len(chosen.fitted)} points"
    table = Table("", *(text for method in result.estimates for text in (method, level)), title=title)
    first = next(iter(result.estimates.values()))
    for name in first.numbers:
        cells = [(number(one.numbers[name]), span(one.bootstrap[name])) for one in result.estimates.values()]
        label = {SHARE: "a (N ~ C^a)", FALL: "c (L - E ~ C^-c)"}.get(name, name)
        table.add_row(label, *(text for pair in cells for text in pair))
    objectives = [(f"{one.fit.objective:.6g}", "") for one in result.estimates.values()]
    table.add_row("objective", *(text for pair in objectives for text in pair))
    console.print(table)
    for method, one in result.estimates.items():
        for text in one.fit.remarks:
            console.print(f"mind ({NAMES[method]}): {text}", markup=False)
    for guess in result.predictions:
        console.print(
            f"held out: {guess.point.name}: predicted {guess.loss:.5g} ({span(guess.interval)}), measured "
            f"{guess.point.loss:.5g}, {100 * guess.error:+.2f} %, {'inside' if guess.inside else 'outside'} "
            f"({NAMES[guess.method]})",
            markup=False,
        )
    for name, why in result.left_out.items():
        console.print(f"not fitted: {name}: {why}", markup=False)


def _write(args: argparse.Namespace, result: Result, runs: list[Run], minded: list[str]) -> None:
    from .plots import draw

    try:
        args.output.mkdir(parents=True, exist_ok=True)
        pictures = draw(result, runs, args.output)
        write_numbers(result, args.output)
        options = {
            "runs": list(map(str, args.runs)),
            "hold_out": args.hold_out,
            "drop_largest": args.drop_largest,
            "exclude": args.exclude,
            "parameters": args.parameters if runs else None,
        }
        write_settings(result, options, args.output)
        about = About(tuple(map(str, args.runs)), args.parameters if runs else "", tuple(minded))
        write_file(args.output / "report.md", report(result, pictures, about))
    except OSError as error:
        raise unusable(args.output, error) from error
