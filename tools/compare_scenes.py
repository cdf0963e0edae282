#!/usr/bin/env python3
"""Compare ways of training or sampling by how well they continue the same held-out scenes, with intervals.

Each arm is a way, and its folders are those that tools/measure_scenes.py wrote, one a seed.  The first arm is the one
that the others are held against.  `error ratio` is the pixel error against repeating the last given frame; `against` is
an arm's error over the first's, on the same scenes.  Intervals hold 95 of 100 draws of seeds and of scenes with
replacement; with few seeds they are too narrow, so that every seed's ratio is shown beside them.

examples:
  python tools/measure_scenes.py runs/a0 --rollout 64         and so on, for every run
  python tools/compare_scenes.py --arm plain runs/a0/scenes runs/a1/scenes --arm noise runs/b0/scenes runs/b1/scenes
  python tools/compare_scenes.py --arm recompute a/scenes --arm keep b/scenes --rollout --output runs/drift
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code, unusable

DRAWS = 2000
SAME = ("scenes", "size", "kinds", "interval", "history")
"""What arms must have in common: else their scenes are others."""


class Arm(NamedTuple):
    """name; model ``[seeds, scenes, frames]``, the model's squared errors; repeat ``[scenes, frames]``, those of
    repeating the last given frame.
    """

    name: str
    model: np.ndarray
    repeat: np.ndarray


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arm = "a name, and folders with a metrics.json of tools/measure_scenes.py, one a seed; repeat for each way"
    parser.add_argument("--arm", action="append", nargs="+", required=True, metavar=("NAME", "FOLDER"), help=arm)
    rollout = "compare what --rollout of tools/measure_scenes.py measured"
    parser.add_argument("--rollout", action="store_true", help=rollout)
    parser.add_argument("--frames", type=int, metavar="N", help="of a rollout, the first N alone")
    output = "folder for comparison.json and comparison.png, the errors by frame"
    parser.add_argument("--output", type=paths.path, metavar="FOLDER", help=output)
    return parser.parse_args()


def read_folder(folder: Path, rollout: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """(settings, model's errors, those of repeating), errors ``[scenes, frames]``; UserError for another folder."""
    path, part = folder / "metrics.json", "rollout" if rollout else "table"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"] | {"rollout": found["settings"]["rollout_scenes"] if rollout else None}
        return settings, *(np.array(found[part][name]["errors"]) for name in ("model", "repeat"))
    except OSError as error:
        raise unusable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        again = "measure again with tools/measure_scenes.py" + (" --rollout N" if rollout else "")
        raise UserError(f"{path}: has no errors by scene of a {part} ({error!r:.60}); {again}") from error


def read_arms(given: list[list[str]], rollout: bool, frames: int | None) -> list[Arm]:
    """All arms; UserError where their scenes differ."""
    arms: list[Arm] = []
    first: tuple[str, dict[str, Any], np.ndarray] | None = None
    for name, *folders in given:
        if not folders:
            raise UserError(f"--arm {name}: has no folder; give those of tools/measure_scenes.py behind the name")
        models = []
        for folder in folders:
            settings, model, repeat = read_folder(paths.path(folder), rollout)
            first = first or (folder, settings, repeat)
            for key in (*SAME, "rollout"):
                if settings.get(key) != first[1].get(key):
                    theirs, ours = first[1].get(key), settings.get(key)
                    raise UserError(f"{folder}: {key} is {ours!r}, and {theirs!r} in {first[0]}; measure both alike")
            if repeat.shape != first[2].shape:
                raise UserError(f"{folder}: {repeat.shape[1]} frames, and {first[2].shape[1]} in {first[0]}")
            models.append(model[:, :frames])
        assert first is not None
        arms.append(Arm(name, np.stack(models), first[2][:, :frames]))
    return arms


def drawn_means(arms: list[Arm], draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """(``[arms, draws, frames]``, ``[draws, frames]``): mean errors of the arms and of repeating, in draws of seeds and
    scenes with replacement.  All arms have the same scenes in a draw.
    """
    rng, scenes = np.random.default_rng(0), len(arms[0].repeat)
    picked = rng.integers(scenes, size=(draws, scenes))
    counts = np.stack([np.bincount(row, minlength=scenes) for row in picked]) / scenes
    means = []
    for arm in arms:
        seeds = rng.integers(len(arm.model), size=(draws, len(arm.model)))
        share = np.stack([np.bincount(row, minlength=len(arm.model)) for row in seeds]) / len(arm.model)
        means.append(np.einsum("dr,ds,rsf->df", share, counts, arm.model, optimize=True))
    return np.stack(means), counts @ arms[0].repeat


def interval(values: np.ndarray) -> list[float]:
    """Of 95 of 100 values along the first axis."""
    return np.quantile(values, (0.025, 0.975), axis=0).tolist()


def compare(arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """Per arm: ratio, seeds, ratio_interval, against and against_interval, mse_by_frame and its interval."""
    means, repeats = drawn_means(arms)
    base = arms[0].repeat.mean()
    found = {}
    for number, arm in enumerate(arms):
        whole = means[number].mean(1)
        found[arm.name] = {
            "ratio": arm.model.mean() / base,
            "ratio_interval": interval(whole / repeats.mean(1)),
            "seeds": (arm.model.mean((1, 2)) / base).tolist(),
            "against": arm.model.mean() / arms[0].model.mean(),
            "against_interval": interval(whole / means[0].mean(1)),
            "mse_by_frame": arm.model.mean((0, 1)).tolist(),
            "mse_by_frame_interval": interval(means[number]),
        }
    return found


def table(found: dict[str, dict[str, Any]]) -> Table:
    """For readers."""
    shown = Table()
    first = next(iter(found))
    for name in ("", "error ratio", "95 %", "of each seed", f"against {first}", "95 %"):
        shown.add_column(name, no_wrap=True)
    for name, arm in found.items():
        low, high = arm["ratio_interval"]
        cells = [name, f"{arm['ratio']:.3f}", f"{low:.3f} to {high:.3f}", ", ".join(f"{r:.3f}" for r in arm["seeds"])]
        low, high = arm["against_interval"]
        shown.add_row(*cells, *([f"{arm['against']:.3f}", f"{low:.3f} to {high:.3f}"] if name != first else ["", ""]))
    return shown


def plot(arms: list[Arm], found: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a PNG: the error by frame, its interval as a band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    frames = range(1, arms[0].repeat.shape[1] + 1)
    for name, arm in found.items():
        line = axes.plot(frames, arm["mse_by_frame"], label=name, linewidth=1.6)[0]
        axes.fill_between(frames, *arm["mse_by_frame_interval"], alpha=0.18, color=line.get_color(), linewidth=0)
    axes.plot(frames, arms[0].repeat.mean(0), label="repeat the last frame", linewidth=1.2, color="0.5", linestyle="--")
    axes.set(title="pixel error (MSE, pixels in [0, 1])", xlabel="predicted frame", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def work(args: argparse.Namespace) -> None:
    """Read, compare, print and write."""
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames {args.frames}: must be at least 1")
    names = [name for name, *_ in args.arm]
    if len(set(names)) < len(names):
        raise UserError(f"--arm: {', '.join(names)}; give each a name of its own")
    arms = read_arms(args.arm, args.rollout, args.frames)
    found = compare(arms)
    Console(width=None if sys.stdout.isatty() else 120).print(table(found))
    if args.output is None:
        return
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"arms": dict(given_folders(args.arm)), "found": found}, indent=2)
        (args.output / "comparison.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise unusable(args.output, error) from error
    plot(arms, found, args.output / "comparison.png")
    print(f"wrote {args.output}: comparison.json, comparison.png")


def given_folders(given: list[list[str]]) -> list[tuple[str, list[str]]]:
    """(name, folders) of each arm."""
    return [(name, folders) for name, *folders in given]


def main() -> int:
    """Entry point."""
    try:
        work(arguments())
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
