"""`python -m megatron_videogpt scaling status`: its options; what it does is imported when it runs."""

from __future__ import annotations

import argparse

from ...config.paths import path

DESCRIPTION = """\
How far a ladder is: state, step, losses, speed and time left of every run, which one diverged and by which rule.  It
only looks, while the ladder runs or after.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt scaling status examples/scaling/cpu.toml
  python -m megatron_videogpt scaling status runs/scaling/cpu --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("ladder", type=path, metavar="LADDER.toml|FOLDER", help="the ladder, or its folder")
    parser.add_argument("--json", action="store_true", help="print it as JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Look and print; UserError, one line, where there is no ladder."""
    import json
    from pathlib import Path

    from ..write import finite
    from .folder import read_plan
    from .options import read_ladder
    from .plan_report import console_of
    from .state import state_of
    from .status_report import as_json, status_table

    output = args.ladder if args.ladder.is_dir() else Path(read_ladder(args.ladder)[0].output)
    _, runs = read_plan(output)
    pairs = [(run, state_of(run)) for run in runs]
    if args.json:
        print(json.dumps(finite(as_json(pairs)), indent=2, allow_nan=False))
        return
    console_of().print(status_table(pairs))
