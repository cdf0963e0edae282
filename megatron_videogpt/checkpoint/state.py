"""`python -m megatron_videogpt state`: where a run is."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import paths, shrink
from .folders import complete_folders, read_state
from .in_use import check_free
from .whole import GO_ON, first_whole

DESCRIPTION = """\
Where a run is: prints `new`, `resumes at step N` or `finished at step N`.

A wrong configuration, one that does not fit N processes, or a folder that is not free is named on stderr as `train`
would name it, with exit code 2.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt state examples/videogpt/stage1.toml
  python -m megatron_videogpt state --processes 320 examples/videogpt/stage1.toml train.output=runs/mine
  python -m megatron_videogpt state --free examples/videogpt/quickstart.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("--processes", type=int, metavar="N", help="also check that the layout fits so many processes")
    parser.add_argument("--free", action="store_true", help="only ask whether no run is going on there now")
    parser.add_argument("file", type=paths.path, metavar="FILE.toml", help="the configuration")
    parser.add_argument(
        "overrides", metavar="section.option=value", nargs="*", help="options that replace those of the file"
    )
    shrink.add_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Print it; UserError where the configuration is wrong or the folder is not free."""
    config = shrink.load(args.file, args.overrides, args.processes, args.shrink, tell=False)
    output = Path(config.train.output)
    if args.free:
        check_free(output)
        return
    step = _step(output, config.checkpoint.on_damaged)
    if step >= config.train.steps:
        print(f"finished at step {step}")
    else:
        print(f"resumes at step {step}" if step else "new")


def _step(run: Path, on_damaged: str) -> int:
    folders = complete_folders(run)[::-1]
    return int(read_state(first_whole(folders, on_damaged, GO_ON)[0])["step"]) if folders else 0
