#!/usr/bin/env python3
"""Draw the hierarchical mask of next clip diffusion: as the paper orders tokens, and as this project stores them (two
intervals per row).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.objective.next_clip.order import reference_order
from megatron_videogpt.sequence.intervals import dense_mask
from megatron_videogpt.sequence.layout import CLEAN, layout, training_shape

COLOURS = ("#ffffff", "#3b6fb6", "#e08e2b", "#e0bd8a")
NAMES = ("clean token sees clean", "noisy token sees its own clip", "noisy token sees clean history")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/draw_mask.py docs/mask.png --clips 2,3,1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=paths.path, help="PNG to write")
    parser.add_argument("--clips", default="2,3,1", help="frames of each clip (default 2,3,1)")
    parser.add_argument("--patches", type=int, default=4, help="patches per frame (default 4)")
    return parser.parse_args()


def coloured(mask: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """0 nothing, 1 clean to clean, 2 noisy to noisy, 3 noisy to clean; rows are queries."""
    kind = np.where(clean[:, None], 1, np.where(clean[None, :], 3, 2))
    return np.where(mask, kind, 0)


def draw(axes: plt.Axes, picture: np.ndarray, clean: np.ndarray, clip: np.ndarray, title: str) -> None:
    """One mask with a label at each run of tokens of one clip and kind."""
    axes.imshow(picture, cmap=ListedColormap(COLOURS), vmin=0, vmax=3, interpolation="nearest")
    edges = [0, *(np.flatnonzero((np.diff(clip) != 0) | (np.diff(clean.astype(int)) != 0)) + 1), len(clean)]
    for edge in edges:
        axes.axhline(edge - 0.5, color="#999999", linewidth=0.5)
        axes.axvline(edge - 0.5, color="#999999", linewidth=0.5)
    middles = [(a + b - 1) / 2 for a, b in zip(edges, edges[1:])]
    names = [f"{'clean' if clean[a] else 'noisy'} {clip[a] + 1}" for a in edges[:-1]]
    axes.set_xticks(middles, names, rotation=90, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")


def main() -> None:
    """Draw both orders side by side."""
    args = arguments()
    try:
        clips = tuple(int(part) for part in args.clips.split(","))
        shape = training_shape(clips, (1, args.patches))
    except ValueError as error:
        sys.exit(
            f"error: --clips {args.clips} --patches {args.patches}: {error}; expected positive numbers such "
            "as --clips 2,3,1 --patches 4"
        )
    row = layout(shape)
    mask, clean, clip = dense_mask(row.intervals).numpy(), (row.kind == CLEAN).numpy(), row.clip.numpy()
    order = reference_order(row).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7), dpi=110)
    picture = coloured(mask, clean)
    draw(
        left,
        picture[order][:, order],
        clean[order],
        clip[order],
        "in the paper's order: noisy and clean clips take turns",
    )
    draw(right, picture, clean, clip, "as stored here: at most two intervals in every row and column")
    figure.legend(
        handles=[Patch(color=colour, label=name) for colour, name in zip(COLOURS[1:], NAMES)],
        loc="lower center",
        ncols=3,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 0.99))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(f"{args.output}: {len(row)} tokens, {mask.mean():.0%} of all pairs attend")


if __name__ == "__main__":
    main()
