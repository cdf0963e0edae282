#!/usr/bin/env python3
"""Print the losses of two or more runs side by side, and how far they are from the first."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.errors import UserError

EPILOG = """
The first run is the one that the others are held against.  A difference is |other - first| / |first|.  Every step that
the runs have recorded is compared, not only those in the table, and all runs must have recorded the same steps
(logging.every=1 records each).  Exit status: 0 when no difference is above --bound, 1 when one is, 2 for a wrong
command line or a run that is not there.

examples:
  python tools/compare_runs.py runs/one runs/two                                two runs, every recorded step
  python tools/compare_runs.py runs/one runs/two --bound 1e-5                   ends with 1 if they differ by more
  python tools/compare_runs.py "one process"=runs/one TP2=runs/two --every 5    names of your own, every fifth row
  python tools/compare_runs.py runs/one runs/two --metric grad_norm             another number of metrics.jsonl
"""


def read_run(folder: Path, metric: str) -> dict[int, float]:
    """Step -> value of one metric in a run's metrics.jsonl; one that was not finite is nan.

    Reads the file without importing the trainer, so that runs can be compared on a machine without torch.
    """
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder}: there is no metrics.jsonl; give the folder of a run (train.output)")
    values: dict[int, float] = {}
    names: set[str] = set()
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a crash has cut the line short
        names |= set(line)
        if metric in line:
            values[line["step"]] = math.nan if line[metric] is None else float(line[metric])
    if not values:
        known = ", ".join(sorted(names - {"step"})) or "nothing"
        raise UserError(f"{path}: no step has {metric!r}; it has {known}")
    return values


def same_steps(runs: dict[str, dict[int, float]]) -> list[int]:
    """The steps that all runs have; UserError if one has others."""
    (first, steps), *others = ((name, set(values)) for name, values in runs.items())
    for name, found in others:
        if found != steps:
            odd = sorted(found ^ steps)
            where = name if odd[0] in found else first
            raise UserError(
                f"the runs differ in {len(odd)} of their steps: step {odd[0]} is in {where} alone; "
                "give runs of the same length and the same logging.every"
            )
    return sorted(steps)


def difference(value: float, expected: float) -> float:
    """Relative difference; infinite when one of them is not finite, so that no bound admits it."""
    if not (math.isfinite(value) and math.isfinite(expected)):
        return math.inf
    if value == expected:
        return 0.0
    return abs(value - expected) / abs(expected) if expected else math.inf


def table(runs: dict[str, dict[int, float]], every: int) -> tuple[list[str], dict[str, tuple[float, int]]]:
    """Lines of the table, and of every run but the first its largest difference and the step of that."""
    steps = same_steps(runs)
    first, *others = runs
    worst = {name: max((difference(runs[name][step], runs[first][step]), step) for step in steps) for name in others}
    heads = ["step", *runs, *(["difference"] if len(others) == 1 else [f"{name}: difference" for name in others])]
    rows = []
    for place, step in enumerate(steps):
        if (place + 1) % every == 0 or place in (0, len(steps) - 1):
            differences = [difference(runs[name][step], runs[first][step]) for name in others]
            rows.append([str(step), *(f"{run[step]:.8f}" for run in runs.values()), *(f"{d:.1e}" for d in differences)])
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths)) for cells in (heads, *rows)]
    return lines, worst


def named(run: str) -> tuple[str, Path]:
    """NAME=FOLDER, or FOLDER, which is then its own name."""
    name, equals, folder = run.partition("=")
    return (name, Path(folder)) if equals and not Path(run).exists() else (run, Path(run))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="folder of a run, or its metrics.jsonl")
    parser.add_argument("--metric", default="loss", help="the number to compare (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="show every Nth recorded step (default: 1)")
    parser.add_argument("--bound", type=float, default=math.inf, help="largest relative difference that is accepted")
    args = parser.parse_args()
    folders = dict(map(named, args.runs))
    if len(folders) < 2 or len(folders) != len(args.runs):
        parser.error("give at least two runs, each with a name of its own")
    if args.every < 1 or not args.bound >= 0:
        parser.error("--every must be at least 1, --bound at least 0")
    try:
        lines, worst = table({name: read_run(folder, args.metric) for name, folder in folders.items()}, args.every)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    first = next(iter(folders))
    good = True
    for name, (size, step) in worst.items():
        within = size <= args.bound
        good = good and within
        verdict = "" if args.bound == math.inf else f", {'within' if within else 'ABOVE'} the bound of {args.bound:.0e}"
        print(f"{name} against {first}: largest relative difference {size:.1e} (step {step}){verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
