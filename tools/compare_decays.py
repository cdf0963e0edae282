#!/usr/bin/env python
"""Points of WSD-S runs against runs of their own length: is one run with a decay at each as good as several runs?

Runs are paired by seed and steps: each decay of a run with optimizer.schedule = wsd_s, and a run with wsd that ends
there.  Both have seen the same samples and are validated on the same clips with the same noise, so that the difference
of a pair is surer than either loss.  The table has, per number of steps, the mean of both losses over seeds, the
difference in percent of the second with its standard error over seeds (from two seeds on), and what a single loss's
standard error over clips is.

  python tools/compare_decays.py runs/decays/*
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.scaling.points import Point
from megatron_videogpt.scaling.report import table
from megatron_videogpt.scaling.runs import Run, check_alike, read_run

Pairs = dict[int, dict[int, tuple[Point, Point]]]
"""Steps -> seed -> (of WSD-S, of a run of its own)."""


@dataclass(frozen=True)
class Compared:
    """Of one number of steps, over seeds: mean losses, differences in percent ``[seeds]``, mean standard error of a
    loss over clips in percent (NaN where it is not known).
    """

    steps: int
    decays: float
    apart: float
    differences: np.ndarray
    error: float

    @property
    def scatter(self) -> float:
        """Standard error of the mean difference; NaN of one seed."""
        count = len(self.differences)
        return float(self.differences.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def pair(runs: Sequence[Run]) -> Pairs:
    """Points by steps and seed; UserError where one has no partner, or runs of a seed cannot be compared."""
    found: tuple[dict[tuple[int, int], Point], ...] = ({}, {})
    for seed in sorted({run.validated["train.seed"] for run in runs}):
        alike = [run for run in runs if run.validated["train.seed"] == seed]
        check_alike(alike)
        for run in alike:
            for point in run.points:
                if point.dropped:
                    raise UserError(f"{run.folder}: {point.name}: {point.dropped}; let it finish, or leave it out")
                key, several = (int(point.steps), seed), found[len(run.points) == 1]
                if key in several:
                    raise UserError(
                        f"{run.folder}: another run has {key[0]} steps and seed {seed}; leave one of them out"
                    )
                several[key] = point
    decays, apart = found
    alone = sorted(decays.keys() ^ apart.keys())
    if alone or not decays:
        steps, seed = alone[0] if alone else (0, 0)
        what = f"{steps} steps of seed {seed} are in " + (
            "no run of their own" if (steps, seed) in decays else "no decay"
        )
        raise UserError(
            f"{what if alone else 'no run has several decays'}; give wsd_s runs, and a wsd run for each decay"
        )
    pairs: Pairs = {}
    for (steps, seed), point in sorted(decays.items()):
        pairs.setdefault(steps, {})[seed] = point, apart[steps, seed]
    return pairs


def compare(pairs: Pairs) -> list[Compared]:
    """Over seeds."""
    results = []
    for steps, seeds in pairs.items():
        losses = np.array([[one.loss, other.loss] for one, other in seeds.values()])
        errors = [100 * other.errors.get("loss", np.nan) / other.loss for _, other in seeds.values()]
        differences = 100 * (losses[:, 0] / losses[:, 1] - 1)
        decays, apart = map(float, losses.mean(0))
        results.append(Compared(steps, decays, apart, differences, float(np.mean(errors))))
    return results


def shown(results: Sequence[Compared]) -> str:
    """A table in Markdown."""
    head = ("steps", "seeds", "WSD-S", "runs of their own", "difference, %", "error of a loss over clips, %")
    rows = []
    for one in results:
        spread = "" if np.isnan(one.scatter) else f" +- {one.scatter:.2f}"
        sure = "" if np.isnan(one.error) else f"{one.error:.1f}"
        difference = f"{one.differences.mean():+.2f}{spread}"
        rows.append(
            (f"{one.steps}", f"{len(one.differences)}", f"{one.decays:.4f}", f"{one.apart:.4f}", difference, sure)
        )
    return table(head, rows)


def main() -> int:
    """The exit code: 2 with one line on stderr for runs that cannot be paired."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=paths.path, nargs="+", metavar="RUN", help="folders of finished runs of one model")
    try:
        runs = [read_run(folder) for folder in parser.parse_args().runs]
        sizes = sorted({run.parameters for run in runs})
        if len(sizes) > 1:
            raise UserError(f"runs of {len(sizes)} sizes, {sizes[0]:g} and {sizes[1]:g} parameters; give those of one")
        print(shown(compare(pair(runs))), end="")
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
