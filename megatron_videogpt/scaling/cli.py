"""`python -m megatron_videogpt scaling fit`: its options; what it does is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..config.paths import path

DESCRIPTION = """\
Fit L(N, D) = E + A / N^alpha + B / D^beta to training runs, with intervals: how the loss falls with parameters N and
tokens D, how a budget of compute is best split between them, and what loss a larger run will reach.

RUNS are folders of runs (their train.output), folders that hold such folders, or tables (.csv) with the columns N,
loss, and D or C (FLOPs, taken as 6 N D); name, S (steps), b (batch) and further losses (loss_...) are used if there
are any.  Of a run the last validation loss counts, of a wsd_s run that at the end of each decay; a run that is not
finished or diverged is left out, and that is said.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt scaling fit runs/ladder --hold-out 1 --output runs/ladder_fit
  python -m megatron_videogpt scaling fit runs/small runs/middle runs/large runs/larger ...
  python -m megatron_videogpt scaling fit points.csv --drop-largest 5 --compute 1e21 1e22

It writes into --output: report.md (start there), fit.json, points.csv, frontier.csv, settings.json, and the pictures
frontier, residuals, isoflop and loss_curves as PNG and SVG.  See docs/scaling.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("runs", type=path, metavar="RUNS", nargs="+", help="folders of runs, or tables (.csv)")
    parser.add_argument(
        "--output",
        type=path,
        default=path("scaling_fit"),
        metavar="FOLDER",
        help="of the results (default: scaling_fit)",
    )
    parser.add_argument(
        "--hold-out",
        type=_whole(0),
        default=0,
        metavar="K",
        help="leave out the K points of largest compute, predict them, and say how well (default: 0)",
    )
    parser.add_argument(
        "--drop-largest", type=_whole(0), default=0, metavar="K", help="drop the K largest losses (default: 0)"
    )
    parser.add_argument("--exclude", nargs="+", default=[], metavar="NAME", help="drop the points of these names")
    parser.add_argument(
        "--compute",
        nargs="+",
        type=_above_zero,
        default=[],
        metavar="FLOPS",
        help="budgets to split between size and tokens (default: 1, 10 and 100 times the largest point's)",
    )
    parser.add_argument(
        "--parameters",
        choices=("all", "decoder"),
        default="all",
        help="what N counts in runs: all that is trained, or the decoder without embedding and head (default: all)",
    )
    parser.add_argument(
        "--bootstrap", type=_whole(20), default=1000, metavar="R", help="replicates, at least 20 (default: 1000)"
    )
    parser.add_argument("--level", type=_share, default=0.95, metavar="P", help="of all intervals (default: 0.95)")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the bootstrap (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Fit, write and print; UserError, one line, when that cannot be done."""
    from .command import run_fit

    run_fit(args)


def _whole(least: int) -> Callable[[str], int]:
    """An argument type: a whole number of at least `least`."""

    def parse_number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least {least}")
        return int(text)

    return parse_number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _above_zero(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0, for example 1e21")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0 and below 1, for example 0.95")
    return value
