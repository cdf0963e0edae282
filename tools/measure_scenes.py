#!/usr/bin/env python
"""How many bodies of held-out scenes a trained model keeps where they are, beside simple guesses: docs/evaluating.md.

Every kind of scene counts alike.  Prints a table (the model, repeating the last given frame, extrapolating the last
two, the codec's round trip of the truth) and writes metrics.json and scenes.webp (truth above, model below) into a
folder; with --rollout also a long continuation over the sliding window, its curves by frame in rollout.png.

  python tools/measure_scenes.py runs/quickstart
  python tools/measure_scenes.py runs/quickstart --scenes 20 --steps 10 --clips 4,4 --rollout 64
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_videogpt.config import paths
from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.errors import UserError, exit_code, unusable
from megatron_videogpt.evaluate.measure import Score, all_guesses, has_average, score_all
from megatron_videogpt.evaluate.report import animate, plot, score_table
from megatron_videogpt.evaluate.scenes import Scene, check_measurable, fill, given_frames, read_scenes
from megatron_videogpt.sample.generate import Model, load
from megatron_videogpt.sample.options import add_settings, resolve
from megatron_videogpt.version import __version__


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="folder of a training run, or a Hugging Face folder"
    )
    step = "use the run's checkpoint of this step (default: the newest)"
    parser.add_argument("--step", type=int, metavar="N", help=step)
    weights = "trained, average (their moving average), or auto: the average where there is one (default: auto)"
    parser.add_argument("--weights", choices=("auto", "trained", "average"), default="auto", help=weights)
    parser.add_argument("--scenes", type=int, default=10, metavar="N", help="of each kind (default: %(default)s)")
    size = "side of the frames in pixels (default: that of training)"
    parser.add_argument("--size", type=int, metavar="N", help=size)
    frames = "latent frames to predict; the clips are repeated up to there (default: the sum of the clips)"
    parser.add_argument("--frames", type=int, metavar="N", help=frames)
    parser.add_argument("--rollout", type=int, metavar="N", help="continue by so many latent frames as well")
    some = "scenes of each kind that are continued by --rollout (default: %(default)s)"
    parser.add_argument("--rollout-scenes", type=int, default=3, metavar="N", help=some)
    parser.add_argument("--batch", type=int, default=6, metavar="N", help="scenes a pass (default: %(default)s)")
    output = "folder to write to (default: RUN/scenes)"
    parser.add_argument("--output", type=paths.path, metavar="FOLDER", help=output)
    add_settings(parser.add_argument_group("sampling (default: as the model's configuration has it)"))
    return parser.parse_args()


@dataclass(frozen=True)
class Measured:
    """Scenes, what the model shows of them, and what it and the simple guesses are worth."""

    scenes: list[Scene]
    predicted: list[np.ndarray]
    scores: dict[str, Score]


def check(args: argparse.Namespace) -> None:
    """UserError for what can be told wrong before anything slow starts."""
    for name in ("scenes", "frames", "rollout", "rollout_scenes", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not args.run.is_dir():
        raise UserError(f"{args.run}: no such folder; expected a training run or a Hugging Face folder")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{os.environ['WORLD_SIZE']} processes: start one without torchrun")


def open_output(args: argparse.Namespace) -> Path:
    """The folder to write to, which is there."""
    output: Path = args.output or args.run / "scenes"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(output, error) from error
    return output


def load_measurable(args: argparse.Namespace) -> Model:
    """The model with the scenes to measure it on in its configuration; `args.weights` is resolved on the way."""
    if args.weights == "auto":
        args.weights = "average" if has_average(args.run, args.step) else "trained"
    model = load(args.run, args.step, args.weights == "average")
    data = replace(model.config.data, physics=check_measurable(model.config, model.codec, args.size))
    return replace(model, config=replace(model.config, data=data))


def measure(args: argparse.Namespace, model: Model, settings: SampleConfig, interval: int, count: int) -> Measured:
    """Continue `count` scenes of each kind by the clips of the settings, under a progress bar."""
    config = replace(model.config, sample=settings)
    scenes = list(read_scenes(config, model.codec, count, given_frames(settings, args.history), interval))
    columns = "sampling", BarColumn(), TextColumn("{task.completed:.0f}/{task.total} frames"), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(scenes) * sum(settings.clips))
        guesses = all_guesses(
            model, scenes, settings, args.seed, args.batch, lambda frames, _: progress.advance(task, frames)
        )
    return Measured(scenes, guesses["model"], score_all(scenes, guesses))


def first_of_each(measured: Measured) -> tuple[list[Scene], list[np.ndarray]]:
    """The first scene of every kind, and what the model shows of it."""
    places = {scene.kind: number for number, scene in reversed(list(enumerate(measured.scenes)))}
    chosen = sorted(places.values())
    return [measured.scenes[number] for number in chosen], [measured.predicted[number] for number in chosen]


def facts(
    args: argparse.Namespace, model: Model, settings: SampleConfig, interval: int, clips: Sequence[int]
) -> dict[str, object]:
    """What was measured, ready for JSON."""
    physics = model.config.data.physics
    return {
        "run": str(args.run),
        "step": model.step,
        "weights": args.weights,
        "settings": {
            **asdict(settings),
            "clips": list(clips),
            "history": given_frames(settings, args.history),
            "interval": interval,
            "seed": args.seed,
            "batch": args.batch,
            "size": physics.size,
            "kinds": list(physics.kinds),
            "scenes": args.scenes,
            "rollout": args.rollout,
            "rollout_scenes": args.rollout_scenes,
        },
        "codec": {"name": model.codec.name, "fingerprint": model.codec.fingerprint},
        "version": __version__,
    }


def work(args: argparse.Namespace) -> None:
    """Measure, print and write; UserError, one line, for whatever the user can mend."""
    began = time.perf_counter()
    check(args)
    model = load_measurable(args)
    settings, interval = resolve(args, model.config)
    output = open_output(args)
    clips = fill(settings.clips, args.frames or sum(settings.clips))
    table = measure(args, model, replace(settings, clips=clips), interval, args.scenes)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(score_table(table.scores))
    result = facts(args, model, settings, interval, clips)
    result["table"] = {name: asdict(score) for name, score in table.scores.items()}
    shown = table
    if args.rollout:
        longer = replace(settings, clips=fill(settings.clips, args.rollout))
        shown = measure(args, model, longer, interval, args.rollout_scenes)
        result["rollout"] = {name: asdict(score) for name, score in shown.scores.items()}
        plot(shown.scores, output / "rollout.png")
        console.print(score_table(shown.scores))
    animate(*first_of_each(shown), output / "scenes.webp")
    (output / "metrics.json").write_text(
        json.dumps({**result, "seconds": time.perf_counter() - began}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"wrote {output}: metrics.json, scenes.webp{', rollout.png' if args.rollout else ''}")


def main() -> int:
    """The exit code: 2 with one line on stderr where the model cannot be measured."""
    try:
        work(arguments())
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
