#!/usr/bin/env python
"""How well runs of next block prediction continue held-out scenes, side by side: block sizes, seeds, tokenizers.

Each model is given the first latent frames of scenes that no training draws, and draws the rest alone, the likeliest
tokens: nothing of the truth is shown to it on the way.  The table has, per run, the validation loss and accuracy that
it recorded (with the truth before every block), the share of right tokens among those that are not what the last given
frame has at their place, the mean squared pixel error, its ratio to repeating the last given latent frame, and the
seconds that a video takes alone (the fastest of a few, transformer, draws and tokenizer).  Repeating has none of those
tokens right, by definition.

  python tools/compare_blocks.py runs/nbp/block1 runs/nbp/block4 runs/nbp/block16
  python tools/compare_blocks.py runs/nbp/seed0 runs/nbp/seed1 runs/nbp/seed2 --scenes 11 --output runs/nbp/seeds
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.codec.fsq import ids_of
from megatron_videogpt.codec.geometry import expected_levels
from megatron_videogpt.config import paths
from megatron_videogpt.data.video.pictures import to_model_range, to_pixels
from megatron_videogpt.errors import UserError, exit_code, unusable
from megatron_videogpt.evaluate.report import animate
from megatron_videogpt.evaluate.scenes import Scene, given_frames, read_scenes, repeated, round_trip
from megatron_videogpt.evaluate.tokens import TokenScore, score_tokens
from megatron_videogpt.sample.evaluate import decode_continuation
from megatron_videogpt.sample.generate import Continuation, Model, generate, load
from tools.compare_runs import read_run

TIMED = 3  # videos whose time is taken, after one that is not


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=paths.path, nargs="+", metavar="RUN", help="folders of training runs")
    parser.add_argument("--scenes", type=int, default=11, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="scenes a pass (default: %(default)s)")
    output = "folder for metrics.json, and of each run scenes_RUN.webp, truth above and model below"
    parser.add_argument("--output", type=paths.path, metavar="FOLDER", help=output)
    return parser.parse_args()


@dataclass(frozen=True)
class Measured:
    """What a run is worth; errors: mean squared, pixels in [0, 1], of the model, of repeating the last given latent
    frame or the last given picture, and of the truth through the tokenizer; seconds: of a video alone.
    """

    block: str
    seed: int
    validation_loss: float
    validation_accuracy: float
    tokens: TokenScore
    errors: dict[str, float]
    seconds: float


def open_run(folder: Path) -> Model:
    """A model of tokens that was trained on scenes, as it is sampled here; UserError, one line, for others."""
    model = load(folder)
    config = model.config
    if config.objective.name != "next_block_prediction":
        raise UserError(f"{folder}: objective.name = {config.objective.name!r}; expected next_block_prediction")
    if config.data.source != "physics":
        raise UserError(f"{folder}: data.source = {config.data.source!r}; only generated scenes, physics, are compared")
    return replace(model, config=replace(config, sample=replace(config.sample, temperature=0.0)))


def block_of(model: Model) -> str:
    """A block as readers know it: 16, or 1x4x4."""
    options = model.config.objective
    return "x".join(map(str, options.block_shape)) or str(options.block)


def recorded(folder: Path, metric: str) -> float:
    """The last value of a metric in a run's metrics.jsonl."""
    values = read_run(folder, metric)
    return values[max(values)]


def mean_error(scenes: list[Scene], guesses: list[np.ndarray]) -> float:
    """Mean squared error over scenes and frames, pixels in [0, 1]."""
    pairs = zip(scenes, guesses, strict=True)
    return float(np.mean([np.square((guess.astype(np.float64) - scene.truth) / 255).mean() for scene, guess in pairs]))


def continued(model: Model, scenes: list[Scene], batch: int) -> Iterator[Continuation]:
    """What the model makes of the given frames of every scene."""
    return generate(model, [scene.prompt for scene in scenes], model.config.sample, 0, None, batch)


@torch.no_grad()
def errors_of(model: Model, scenes: list[Scene], shown: list[np.ndarray], latents: list[Tensor]) -> dict[str, float]:
    """See `Measured`.  latents: codes of the true videos."""
    given, codec = given_frames(model.config.sample, None), model.codec
    repeats = [video[given - 1 : given].expand(len(video) - given, -1, -1, -1) for video in latents]
    again = [to_pixels(decode_continuation(codec, video[:given], rest)) for video, rest in zip(latents, repeats)]
    return {
        "model": mean_error(scenes, shown),
        "repeat_latent": mean_error(scenes, again),
        "repeat_picture": mean_error(scenes, [repeated(scene) for scene in scenes]),
        "round_trip": mean_error(scenes, [round_trip(scene, codec) for scene in scenes]),
    }


@torch.no_grad()
def measure(
    folder: Path, model: Model, known: tuple[float, float], args: argparse.Namespace, bar: Progress
) -> Measured:
    """Continue the scenes, score them, write the picture.  known: validation loss and accuracy."""
    config, codec, levels = model.config, model.codec, expected_levels(model.config.codec)
    given = given_frames(config.sample, None)
    scenes = list(read_scenes(config, codec, args.scenes, given, config.data.frame_interval[0]))
    found = list(bar.track(continued(model, scenes, args.batch), len(scenes), description=str(folder)))
    shown = [one.frames for one in found]
    latents = [codec.encode(to_model_range(scene.pictures).to(codec.device))[0] for scene in scenes]
    drawn, true = (
        [ids_of(video.cpu(), levels) for video in videos] for videos in ([f.latents for f in found], latents)
    )
    alone = [one.seconds for one in continued(model, scenes[: TIMED + 1], 1)]
    if args.output:
        first = range(0, len(scenes), args.scenes)
        place = args.output / f"scenes_{folder.name}.webp"
        animate([scenes[number] for number in first], [shown[number] for number in first], place)
    return Measured(
        block_of(model),
        config.train.seed,
        *known,
        score_tokens(drawn, true, given),
        errors_of(model, scenes, shown, latents),
        min(alone[1:] or alone),
    )


def table(results: dict[str, Measured]) -> Table:
    """A row for each run."""
    shown = Table(title="free-running, the likeliest tokens; all: a repeated last latent frame's in brackets")
    columns = (
        "run",
        "block",
        "seed",
        "loss",
        "accuracy",
        "moving right",
        "all right",
        "error",
        "ratio",
        "tokenizer",
        "s",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for name, one in results.items():
        tokens, errors = one.tokens, one.errors
        cells = [name, one.block, str(one.seed), f"{one.validation_loss:.3f}", f"{one.validation_accuracy:.3f}"]
        cells += [f"{tokens.changed:.3f}", f"{tokens.right:.3f} ({tokens.repeated:.3f})", f"{errors['model']:.5f}"]
        ratios = [errors[what] / errors["repeat_latent"] for what in ("model", "round_trip")]
        shown.add_row(*cells, *(f"{ratio:.3f}" for ratio in ratios), f"{one.seconds:.2f}")
    return shown


def work(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    for name in ("scenes", "batch"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if len({run.name for run in args.runs}) < len(args.runs):
        raise UserError("two runs have folders of one name, by which their rows and pictures are called; rename one")
    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(args.output, error) from error
    # What a run has not recorded is told before anything slow.
    known = {run: (recorded(run, "validation_loss"), recorded(run, "validation_accuracy_top1")) for run in args.runs}
    models = {run: open_run(run) for run in args.runs}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        results = {run.name: measure(run, model, known[run], args, bar) for run, model in models.items()}
    Console(width=None if sys.stdout.isatty() else 140).print(table(results))
    if args.output:
        text = json.dumps({name: asdict(one) for name, one in results.items()}, indent=2)
        (args.output / "metrics.json").write_text(text + "\n", encoding="utf-8")
        print(f"wrote {args.output}: metrics.json, scenes_*.webp")


def main() -> int:
    """The exit code: 2 with one line on stderr where a run cannot be measured."""
    try:
        work(arguments())
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
