"""`python -m megatron_videogpt check`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable

CHECK = """\
Validate the TOML file FILE without training, and print what its run would take: parameters, sequence lengths, FLOPs,
memory of a rank by component and recompute policy, communication, pipeline bubble and days; then the layouts that
should be fastest on these devices.  With --data, open the data that the run would read instead, and print token
statistics, padding and balance of its rows; no picture is read.
"""

CHECK_EXAMPLES = """\
examples:
  python -m megatron_videogpt check examples/videogpt/stage4.toml --gpus 320 --memory-gb 80
  python -m megatron_videogpt check examples/videogpt/stage4.toml --gpus 320 --frame 192x320 parallel.tensor=4 \\
      parallel.sequence=true
  python -m megatron_videogpt check examples/videogpt/stage1.toml --gpus 64 --memory-gb 64 --mfu 0.35 \\
      logging.peak_tflops=376
  python -m megatron_videogpt check examples/videogpt/stage4.toml --data --gpus 320 data.source=shards \\
      data.path=/data/shards data.pack_tokens=65536

Memory agrees with measured runs within 15 %; times rest on assumptions that are printed with them.  See
docs/planner.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes beside the file and its overrides."""
    parser.description, parser.epilog = CHECK, CHECK_EXAMPLES
    parser.add_argument(
        "--gpus",
        type=positive(int),
        metavar="N",
        help="processes of the run (default: one model replica, TP x CP x PP)",
    )
    parser.add_argument(
        "--memory-gb",
        type=positive(float),
        metavar="GB",
        help="memory of a device in 10^9 bytes (default: parallel.memory_gb, else 80)",
    )
    parser.add_argument(
        "--mfu",
        type=positive(float),
        metavar="SHARE",
        help="model FLOP utilisation (default: measured in train.output, else 0.4)",
    )
    parser.add_argument(
        "--frame",
        type=_frame,
        metavar="HxW",
        help="size of all frames in pixels (default: 16:9 for means, square for the longest row)",
    )
    parser.add_argument(
        "--data",
        action="store_true",
        help="look at the data: videos, sequences, padding and balance of rows; see data.pack_tokens",
    )


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argument type: a number above 0."""

    def parse_number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind("0")
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: must be a {'whole ' if kind is int else ''}number above 0")
        return value

    return parse_number


def _frame(text: str) -> tuple[int, int]:
    """``192x320`` -> (192, 320): height, width."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be height x width in pixels, for example 192x320")
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> None:
    """Validate and print the estimates; folders that are not there yet are only noted."""
    from ..config import shrink
    from .report import print_report

    config = shrink.load(args.file, args.overrides, args.gpus, args.shrink)
    if args.data:
        from .data_report import print_data_report

        print_data_report(config, args.gpus or config.parallel.model_size)
        return
    print_report(config, args.gpus or config.parallel.model_size, args.memory_gb, args.mfu, args.frame)
