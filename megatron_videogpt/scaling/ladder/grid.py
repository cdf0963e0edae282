"""The runs of a ladder: every point of its grid, by the rules, as configurations that `train` takes."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...config.check import find_problems
from ...config.load import ConfigError, config_from_dict, merge_tables, parse_overrides, read_table
from ...config.schema import Config
from ...config.toml import show
from ...errors import UserError
from ..law import FLOPS
from ..runs import validated_by
from .options import BASE, SECTION, Ladder, read_ladder
from .rules import batch_of, steps_of, trained
from .sizes import Counts, counts_of, sized

UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Planned:
    """A run as it is planned.

    name: that of its folder; target: the size asked for, in parameters; config: what `train` gets; points: steps after
    which it has a point, ascending, the last one its end; counts: its parameters; held_out: whether it is to be
    predicted.
    """

    name: str
    target: float
    config: Config
    points: tuple[int, ...]
    counts: Counts
    held_out: bool = False

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.train.output)


@dataclass(frozen=True)
class Cell:
    """A point of the grid: parameters and tokens, and the two numbers that ask for them."""

    target: float
    config: Config
    tokens: float
    first: float
    second: float


def label(value: float) -> str:
    """A number in a name: 1.25M, 300k."""
    scale, unit = next((pair for pair in UNITS if value >= pair[0]), UNITS[-1])
    return f"{value / scale:.4g}{unit}"


def plan_ladder(path: Path, overrides: Sequence[str] = ()) -> tuple[Ladder, Config, list[Planned]]:
    """A ladder's file: its options, its recipe, and its runs, those that are held out last.

    overrides: of the recipe, and of the section [ladder] (``ladder.gpus=8``).

    Raises:
        UserError, ConfigError: one line for whatever is wrong with them.
    """
    own = [text for text in overrides if text.lstrip().startswith(f"{SECTION}.")]
    ladder, values = read_ladder(path, own)
    base, problems, broken = read_table(values, path, [text for text in overrides if text not in own])
    # Runs have another schedule than the recipe, whose options are checked with it.
    unasked = set() if ladder.schedule == BASE else {"optimizer.schedule"}
    problems += find_problems(base, None, broken | unasked)
    if problems:
        raise ConfigError(problems)
    if not base.eval.every and not ladder.validations:
        raise UserError(f"{path}: eval.every = 0: a point is a validation loss; use another one, or ladder.validations")
    runs = _grid(base, ladder) + _held_out(base, ladder)
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(
            f"{path}: two runs would be called {twice}: numbers of a grid must differ in their first digits"
        )
    runs = _overridden(runs, ladder)
    _check_alike(runs)
    for run in runs:
        problems = find_problems(run.config, None)
        if problems:
            raise ConfigError([f"{run.name}: {line}" for line in problems])
    return ladder, base, runs


def _grid(base: Config, ladder: Ladder) -> list[Planned]:
    """The runs of both axes."""
    first, second = (getattr(ladder, name) for name in ladder.axes)
    if ladder.axes[0] == "budgets":
        cells = [_cell(base, ladder, one, other) for one in first for other in second]
        return [_run(ladder, [cell], _steps(ladder, cell)) for cell in cells]
    runs, seen = [], dict[tuple[Any, ...], float]()
    for one in first:
        cells = [_cell(base, ladder, one, other) for other in second]
        model = cells[0].config.model
        if (before := seen.setdefault(tuple(asdict(model).values())[:3], one)) != one:
            raise UserError(
                f"ladder.sizes = {show(ladder.sizes)}: {label(before)} and {label(one)} both give width "
                f"{model.hidden_size} and {model.num_layers} layers; leave one out, or use a smaller ladder.head_dim"
            )
        shortest = min(_steps(ladder, cell) for cell in cells)
        groups = [cells] if ladder.schedule == "wsd_s" else [[cell] for cell in cells]
        runs += [_run(ladder, group, shortest) for group in groups]
    return runs


def _held_out(base: Config, ladder: Ladder) -> list[Planned]:
    runs = []
    for one, other in ladder.hold_out:
        cell = _cell(base, ladder, one, other, "ladder.hold_out")
        shortest = _steps(ladder, cell)
        if ladder.axes[0] == "sizes":
            beside = (_cell(base, ladder, one, number) for number in getattr(ladder, ladder.axes[1]))
            shortest = min(shortest, *(_steps(ladder, each) for each in beside))
        runs.append(replace(_run(ladder, [cell], shortest), held_out=True))
    return runs


def _cell(base: Config, ladder: Ladder, first: float, second: float, option: str = "") -> Cell:
    """A point of the grid by its numbers; option: that asks for it, where that is not an axis."""
    axes = ladder.axes
    if axes[0] == "sizes":
        target, told = first, f"{option or 'ladder.sizes'} = {first:g}"
    else:
        target = math.sqrt(first / (FLOPS * second * ladder.tokens_per_parameter))
        told = f"{option or 'ladder.budgets'} = {first:g} with a multiple of {second:g}"
    config = sized(base, ladder, target, told)
    size = counts_of(config).of(ladder.parameters)
    tokens = {
        ("sizes", "multiples"): second * ladder.tokens_per_parameter * size,
        ("sizes", "tokens"): second,
        ("sizes", "budgets"): second / (FLOPS * size),
        ("budgets", "multiples"): first / (FLOPS * size),
    }[axes]
    return Cell(target, config, tokens, first, second)


def _steps(ladder: Ladder, cell: Cell) -> int:
    size = counts_of(cell.config).of(ladder.parameters)
    return steps_of(cell.tokens, batch_of(cell.config, ladder, size))


def _run(ladder: Ladder, cells: Sequence[Cell], shortest: int) -> Planned:
    """A run with these points, all of one size."""
    steps = tuple(sorted({_steps(ladder, cell) for cell in cells}))
    first = cells[0]
    if len(steps) < len(cells):
        raise UserError(
            f"ladder: two points of size {label(first.first)} end after the same number of steps ({steps[-1]} at "
            "most); use multiples further apart, or fewer batch_tokens"
        )
    config = trained(first.config, ladder, steps, shortest)
    name = _name(ladder, cells)
    config = replace(config, train=replace(config.train, output=str(Path(ladder.output) / name)))
    return Planned(name, first.target, config, steps, counts_of(config))


def _name(ladder: Ladder, cells: Sequence[Cell]) -> str:
    """Of a run's folder."""
    (first, second), cell = ladder.axes, cells[0]
    head = label(cell.first) if first == "sizes" else f"c{cell.first:.4g}"
    if len(cells) > 1:
        return head
    tail = {"multiples": f"x{cell.second:.4g}", "tokens": f"d{label(cell.second)}", "budgets": f"c{cell.second:.4g}"}
    return f"{head}-{tail[second]}"


def _overridden(runs: list[Planned], ladder: Ladder) -> list[Planned]:
    """With what `ladder.override` says of some of them."""
    for entry in ladder.override:
        found = [run for run in runs if fnmatch.fnmatchcase(run.name, entry["run"])]
        if not found:
            some = ", ".join(run.name for run in runs[:4])
            raise UserError(f"ladder.override: no run is called {entry['run']}; names are {some}, ...")
        fixed = {"train.output", "train.steps"} & {text.partition("=")[0].strip() for text in entry["set"]}
        if fixed:
            raise UserError(
                f"ladder.override of {entry['run']}: {min(fixed)} follows from the ladder; change its sizes, "
                "multiples, budgets or output instead"
            )
        changed = {run.name: _with(run, entry["set"]) for run in found}
        runs = [changed.get(run.name, run) for run in runs]
    return runs


def _with(run: Planned, texts: Sequence[str]) -> Planned:
    try:
        config = config_from_dict(merge_tables(Config, asdict(run.config), parse_overrides(texts)))
    except ConfigError as error:
        raise UserError(f"ladder.override of {run.name}: {error.problems[0]}") from None
    return replace(run, config=config, counts=counts_of(config))


def _check_alike(runs: Sequence[Planned]) -> None:
    """Data, its order and what validation measures are the same in all runs, or the points cannot be compared."""
    first = validated_by(runs[0].config)
    for run in runs[1:]:
        for name, value in validated_by(run.config).items():
            if value != first.get(name):
                raise UserError(
                    f"ladder.override of {run.name}: {name} is {show(value)} there and {show(first.get(name))} in "
                    f"{runs[0].name}; data, objective, seed and validation must be the same in all runs"
                )
