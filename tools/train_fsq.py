#!/usr/bin/env python
"""Train a small FSQ tokenizer on the built-in physics scenes in a few minutes on a CPU, to try next block prediction.

Plain mean absolute and squared error, no discriminator and no perceptual loss: enough for flat shapes on a plain
ground.  It learns from pieces of pictures, most of them where something moves, over as many frames as are encoded at
once later: one that had learned from 5 frames showed each later one worse.  The folder it writes is what
codec.name="fsq" takes as codec.path.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.config.schema_data import SCENES, PhysicsConfig  # noqa: E402
from megatron_videogpt.data.sources.physics import render_scene  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.hub.common.fsq_codes import quantized  # noqa: E402
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer, check_video  # noqa: E402

UNSEEN = 1_000_000
"""First seed of the scenes that it is measured on."""
MOVING = 0.75  # of the pieces are taken where something moves
SQUARES = 30  # what squares weigh: they are small where most of a picture is right, and sharpen what is not


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--output", type=paths.path, required=True, help="the folder to make; it must not exist")
    parser.add_argument("--steps", default=1000, help="optimizer steps", **number)
    parser.add_argument("--levels", nargs="+", default=[8, 8, 5, 5], help="levels of each latent channel", **number)
    parser.add_argument("--width", default=8, help="channels at full resolution", **number)
    parser.add_argument("--groups", default=4, help="groups of a norm", **number)
    parser.add_argument("--units", default=1, help="residual units of a stage", **number)
    parser.add_argument("--scenes", default=512, help="scenes to learn from, kept in memory", **number)
    parser.add_argument("--size", default=64, help="side of a frame in pixels", **number)
    parser.add_argument("--frames", default=17, help="frames of a clip, 1 + 4n", **number)
    parser.add_argument("--crop", default=32, help="side of the piece of a picture that is learned from", **number)
    parser.add_argument("--interval", default=2, help="simulated frames from one to the next", **number)
    parser.add_argument("--batch", default=8, help="clips of a step", **number)
    parser.add_argument("--lr", type=float, default=3e-3, metavar="RATE", help="peak learning rate of Adam")
    parser.add_argument("--threads", default=0, help="CPU threads; 0 uses all cores", **number)
    parser.add_argument("--seed", default=0, **number)
    return parser.parse_args()


def scenes(args: argparse.Namespace, count: int, first: int, frames: int) -> np.ndarray:
    """uint8 [count, frames, size, size, 3], all kinds equally often."""
    configs = [PhysicsConfig(scenes=(kind,), size=args.size) for kind in SCENES]
    return np.stack([render_scene(configs[n % len(SCENES)], first + n, frames, args.interval) for n in range(count)])


def as_video(frames: np.ndarray) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 4, 1, 2, 3).float() / 255


def crops(clips: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A piece [F, side, side, 3] of each clip [F, size, size, 3]: mostly one with a pixel in it that changes."""
    size, pieces = clips.shape[2], []
    for clip in clips:
        moving = np.argwhere((clip[1:] != clip[:1]).any((0, -1))) if rng.random() < MOVING else np.empty((0, 2))
        corner = rng.integers(size - side + 1, size=2)
        if len(moving):
            corner = (moving[rng.integers(len(moving))] - rng.integers(side, size=2)).clip(0, size - side)
        top, left = corner
        pieces.append(clip[:, top : top + side, left : left + side])
    return np.stack(pieces)


def train(model: FSQTokenizer, pool: np.ndarray, args: argparse.Namespace, console: Console) -> None:
    """All steps; a cosine after a short warm-up."""
    rng = np.random.default_rng(args.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    mean = 0.0
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("training", total=args.steps)
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            which = rng.integers(len(pool), size=args.batch)
            start = rng.integers(pool.shape[1] - args.frames + 1)
            video = as_video(crops(pool[which, start : start + args.frames], args.crop, rng))
            error = model.pixels(quantized(model.features(video), model.shape.levels)) - video
            squared = error.square().mean()
            optimizer.zero_grad(set_to_none=True)
            (SQUARES * squared + error.abs().mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean += (squared.item() - mean) / min(step + 1, 50)
            progress.update(bar, advance=1, description=f"training  {-10 * math.log10(mean):.2f} dB")


def measured(model: FSQTokenizer, video: Tensor) -> tuple[float, int]:
    """(PSNR in dB over all pixels, how many different codes) of a video [B, 3, F, H, W]."""
    ids = torch.cat([model.encode(part) for part in video.split(4)])
    out = torch.cat([model.decode(part) for part in ids.split(4)])
    return -10 * math.log10(float((out - video).square().mean())), len(ids.unique())


def main() -> int:
    """Train, measure, write; 2 with one line on stderr when that cannot be done."""
    args, console = arguments(), Console(stderr=True)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    torch.manual_seed(args.seed)
    try:
        if args.output.exists():
            raise UserError(f"--output {args.output}: exists already; give a new name, or remove it first")
        try:
            model = FSQTokenizer(FSQShape(args.width, args.groups, args.units, tuple(args.levels)))
            check_video(torch.empty(1, 3, args.frames, args.size, args.size))
            check_video(torch.empty(1, 3, args.frames, args.crop, args.crop))
        except ValueError as error:
            raise UserError(str(error)) from error
        if args.crop > args.size:
            raise UserError(f"--crop {args.crop}: must be at most --size {args.size}")
    except UserError as error:
        return exit_code(error)
    started = time.time()
    longest = max(17, args.frames)
    pool = scenes(args, args.scenes, 0, longest)
    model.decoder_layers[-1].conv.bias.data.copy_(as_video(pool[:64]).mean((0, 2, 3, 4)))
    train(model, pool, args, console)
    decibels, codes = measured(model.eval(), as_video(scenes(args, 24, UNSEEN, longest)))
    model.save_pretrained(args.output)
    print(
        f"{args.output}: {decibels:.2f} dB on 24 unseen scenes of {longest} frames, {codes} of "
        f"{model.shape.codebook_size} codes used there, {time.time() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
