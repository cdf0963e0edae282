"""`python -m megatron_videogpt data prepare`: videos into shards."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ...config.load import tomllib
from ...config.paths import obstacle
from ...errors import UserError
from ..bad import REASONS
from ..video.container import Limits
from .listings import Listing
from .options import SCENES_TIMEOUT, TIMEOUT, add_options
from .run import REJECTED, Options, Report, prepare

DESCRIPTION = """\
Put videos into WebDataset shards (tar files), which training reads from any place and in any order:
data.source=shards data.path=DIR.

SRC is any number of
  folders          searched for videos, and for .tar shards, which are sharded anew
  videos, .tar     single files
  lists (.txt)     one path in a line
  tables           .csv, .tsv, .jsonl, .json (a list of objects) and .parquet, with a path in one column, perhaps
                   captions or labels in others

The files' bytes stay as they are; --scenes cuts them at scene changes, between frames that can stand alone, without
encoding anything again. What cannot be used is left out and listed in DIR/rejected.jsonl.  After an interruption the
same command goes on where it was.
"""

EXAMPLES = """\
Your own folder of videos:
  python -m megatron_videogpt data prepare videos/ --output shards/
Captions from a table, whose paths start from another folder:
  python -m megatron_videogpt data prepare captions.csv --video-column file --caption-column text --root videos/ \\
      --output shards/
Only good ones, of one split:
  python -m megatron_videogpt data prepare clips.parquet --where split==train --where 'aesthetic score>=5' \\
      --output shards/
File names put together from columns, the files anywhere below a folder:
  python -m megatron_videogpt data prepare train.csv \\
      --video-column '{youtube_id}_{time_start:0>6}_{time_end:0>6}.mp4' --root k600/ --search --output shards/
Long films, cut into scenes:
  python -m megatron_videogpt data prepare films/ --scenes --min-frames 61 --output shards/
A published data set (see docs/datasets.md):
  python -m megatron_videogpt data prepare --recipe examples/datasets/ucf101.toml UCF101/trainlist01.txt \\
      --root UCF101/UCF-101 --output shards/
"""

LISTS = ("where", "list_columns")  # options of several values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    add_options(parser)


def with_recipe(args: argparse.Namespace) -> argparse.Namespace:
    """The command line over the recipe's options; UserError, one line, for a recipe that does not fit."""
    if args.recipe is None:
        return args
    recipe = _read_recipe(args.recipe, args.parser)
    given = {name: value for name, value in recipe.items() if name != "where"}
    args.parser.set_defaults(**given)
    again = args.parser.parse_args(args.words)
    again.where = [*recipe.get("where", []), *again.where]
    return again


def _read_recipe(path: Path, command: argparse.ArgumentParser) -> dict[str, Any]:
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--recipe={path}: cannot be read as TOML ({error}); the recipes are in examples/datasets"
        ) from error
    defaults = {
        action.dest: action.default
        for action in command._actions
        if action.dest not in ("help", "traceback", "sources", "output", "recipe", "workers", "timeout")
    }
    for name, value in recipe.items():
        if name not in defaults:
            raise UserError(f"--recipe={path}: {name} is no option of it; they are {', '.join(defaults)}")
        kind = (
            float
            if isinstance(defaults[name], float) and not isinstance(value, bool) and isinstance(value, int)
            else type(defaults[name])
        )
        if not isinstance(value, (kind, int) if kind is float else kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            raise UserError(f"--recipe={path}: {name} = {value!r} must be like {defaults[name]!r}")
    return recipe


def options_of(args: argparse.Namespace) -> Options:
    """`Options` of a command line."""
    values = vars(args)
    columns: dict[str, Any] = {
        item.name: tuple(values[item.name]) if item.name in LISTS else values[item.name] for item in fields(Listing)
    }
    limits = Limits(int(args.max_video_mb * 1e6), args.max_video_frames, int(args.max_megapixels * 1e6))
    plain = {
        item.name: values[item.name] for item in fields(Options) if item.name not in ("sources", "listing", "limits")
    }
    return Options(sources=tuple(args.sources), listing=Listing(**columns), limits=limits, **plain)


def _prepare(args: argparse.Namespace) -> tuple[Report, bool]:
    """`prepare` with a progress bar on the terminal."""
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_time=False, show_level=False, show_path=False)],
    )
    timeout = args.timeout or (SCENES_TIMEOUT if args.scenes else TIMEOUT)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("listing", total=None)

        def show(done: int, rows: int, rejected: int) -> None:
            bar.update(task, description=f"videos, {rejected} rejected", completed=done, total=rows)

        return prepare(options_of(args), args.output, args.workers, timeout, show)


def run(args: argparse.Namespace) -> None:
    """Prepare and print a summary; UserError, one line, when that cannot be done."""
    args = with_recipe(args)
    if why := obstacle(args.output):
        raise UserError(f"--output={args.output}: {why}")
    report, worked = _prepare(args)
    if not worked:
        print(f"{args.output}: finished before, nothing to do")
    print(
        f"{args.output}: {report.videos} videos, {report.frames} frames, {report.hours:.2f} hours, "
        f"{report.gigabytes:.3f} GB in {report.shards} shards"
    )
    for kind, count in report.rejected.items():
        print(f"{count:8d} rejected: {kind} ({REASONS[kind]})")
    if report.rejected:
        print(f"         names and reasons: {args.output / REJECTED}")


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    return "the same command goes on after the last finished shard"
