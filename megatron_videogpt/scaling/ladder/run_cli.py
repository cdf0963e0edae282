"""`python -m megatron_videogpt scaling run`: its options; what it does is imported when it runs."""

from __future__ import annotations

import argparse

from ...plan.cli import positive
from .arguments import add_ladder

DESCRIPTION = """\
Launch a ladder: every run of LADDER.toml in a folder of its own, one after another or several at a time, until all are
over.  What is finished is skipped; a run that was interrupted goes on from its newest checkpoint, as any run does.

Killed or stopped at any moment, the same command goes on, and no step of a finished run is taken again.  A run that
fails is tried again, ladder.retries times in a row without a new checkpoint, unless only its user can mend it (exit
code 2).  One that diverged is marked, by a rule that is printed, and not tried again.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt scaling run examples/scaling/cpu.toml
  python -m megatron_videogpt scaling run examples/scaling/cpu.toml --minutes 40
  python -m megatron_videogpt scaling run LADDER.toml --gpus 64 --budget 2000h \\
      ladder.command="sbatch --wait --nodes={nodes} examples/slurm.sbatch {config}"

Elsewhere than on this machine ladder.command starts a run and ends with it.  `scaling status` tells how far it is; what
each run prints is in ladder.output/logs.
"""
AFTER = "its runs have saved; the same command goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    add_ladder(parser)
    parser.add_argument(
        "--minutes",
        type=positive(float),
        default=0.0,
        metavar="M",
        help="stop after so long; runs save, and the same command goes on (default: when all are over)",
    )
    parser.add_argument(
        "--at-once", type=positive(int), metavar="K", help="runs at a time (default: ladder.at_once, else what fits)"
    )
    parser.add_argument(
        "--retries", type=_count, metavar="N", help="attempts after one that failed (default: ladder.retries)"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Launch; the exit code: 1 where a run was given up."""
    from .run_command import run_ladder

    return run_ladder(args)


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    return AFTER
