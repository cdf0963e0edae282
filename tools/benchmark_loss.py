#!/usr/bin/env python
"""Next block prediction's loss a chunk of rows at a time, against logits of all rows at once: seconds, and bytes.

Forward and backward, float32, one process; the two alternate, and the fastest of each counts.

    python tools/benchmark_loss.py                 # a row of Kinetics-600: 1264 scored tokens, 64,000 words of 1536
    python tools/benchmark_loss.py --rows 256 --words 8192 --width 256
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.objective.next_block.loss import Part, chunk_rows, cross_entropy
from tools.measuring.clock import in_turns, seconds
from tools.measuring.report import heading, markdown


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--rows", default=1264, help="scored tokens (default: %(default)s)", **number)
    parser.add_argument("--words", default=64_000, help="of the vocabulary (default: %(default)s)", **number)
    parser.add_argument("--width", default=1536, help="of the model (default: %(default)s)", **number)
    parser.add_argument("--threads", default=1, help="CPU threads (default: %(default)s)", **number)
    parser.add_argument("--repeat", default=3, help="runs of each (default: %(default)s)", **number)
    return parser.parse_args()


def timed(loss: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> tuple[float, list[Tensor]]:
    """(seconds of a forward and backward pass, the gradients)."""
    for leaf in leaves:
        leaf.grad = None
    took = seconds(lambda: loss().backward(), "cpu")
    return took, [leaf.grad for leaf in leaves if leaf.grad is not None]


def main() -> None:
    """Measure and print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(args.rows, args.width, generator=generator).requires_grad_()
    words = (0.02 * torch.randn(args.words, args.width, generator=generator)).requires_grad_()
    target = torch.randint(args.words, (args.rows,), generator=generator)
    weight = torch.full((args.rows,), 1 / args.rows)
    ways = {
        "a chunk at a time": lambda: cross_entropy(rows, words, target, weight, Part(0, args.words)).total,
        "all rows at once": lambda: F.cross_entropy(rows @ words.T, target),
    }
    best: dict[str, float] = {}
    found: dict[str, list[Tensor]] = {}
    runs = {name: partial(timed, loss, (rows, words)) for name, loss in ways.items()}
    for name, (took, found[name]) in in_turns(runs, args.repeat):
        best[name] = min(best.get(name, took), took)
    (mine, all_rows), (chunked, whole) = found.values(), best.values()
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(mine, all_rows))
    size = chunk_rows(args.rows, args.words)
    print(f"{heading('cpu', args.threads)}\n")
    print(f"{args.rows} rows of {args.width}, {args.words} words; chunks of {size} rows; gradients to {error:.0e}\n")
    lines = [
        [name, f"{4e-6 * count * args.words:.0f}", f"{took:.2f}", f"**{took / whole:.2f}**"]
        for name, count, took in zip(best, (size, args.rows), (chunked, whole))
    ]
    print(markdown(("logits", "largest, MB", "seconds", "times"), lines))


if __name__ == "__main__":
    main()
