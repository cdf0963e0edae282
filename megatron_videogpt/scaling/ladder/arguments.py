"""Arguments that commands for ladders share."""

from __future__ import annotations

import argparse

from ...config.paths import path
from ...plan.cli import positive


def add_ladder(parser: argparse.ArgumentParser) -> None:
    """The file, what replaces options of it, and what it is fitted to."""
    parser.add_argument("file", type=path, metavar="LADDER.toml", help="a recipe with a section [ladder]")
    parser.add_argument(
        "overrides",
        metavar="section.option=value",
        nargs="*",
        help="options that replace those of the file: of the recipe, or of the ladder (ladder.lr=1e-3)",
    )
    parser.add_argument("--gpus", type=positive(int), metavar="N", help="devices that there are (default: ladder.gpus)")
    parser.add_argument(
        "--memory-gb",
        type=positive(float),
        metavar="GB",
        help="memory of a device in 10^9 bytes (default: ladder.memory_gb)",
    )
    parser.add_argument(
        "--mfu",
        type=positive(float),
        metavar="SHARE",
        help="model FLOP utilisation (default: what runs that are there have measured, else ladder.mfu, else 0.4)",
    )
    parser.add_argument(
        "--budget",
        metavar="B",
        help="FLOPs (1e21) or hours of a device (500h) for all of it: the largest runs are left out until it fits",
    )
