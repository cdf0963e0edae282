"""`python -m megatron_videogpt codec train fsq`: a small tokenizer for next block prediction."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from ...config import paths
from ...errors import UserError
from ...hub.common.fsq_codes import bounded, quantized
from ...hub.common.fsq_tokenizer import (
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    FSQShape,
    FSQTokenizer,
    check_video,
)
from .fsq_frames import Pool, as_video, clip_parts, scenes
from .tiny_frames import HELD_OUT, find_clips, settings_of

DESCRIPTION = """\
Train a small FSQ tokenizer for next block prediction on a CPU: the one that the project ships
(megatron_videogpt/codec/tiny_fsq), or one of your own.

Plain mean absolute and squared error, no discriminator and no perceptual loss (objective.name=tokenizer has them):
enough for 64x64 pixels.  It learns from pieces of pictures, most of them where something moves, and of whole ones in
between, over as many frames as are encoded at once later: one that had learned from 5 frames showed each later one
worse.  Scenes come from the built-in generator, and a share of the pieces from real clips where --videos names a
folder; files of --held-out are the unseen test (list every cut of the same footage).  Written: a folder that
codec.name="fsq" takes as codec.path, with settings.json, curve.json and curve.png of the training beside the weights.
"""

EXAMPLES = """\
examples (the second made the shipped weights):
  python -m megatron_videogpt codec train fsq --output runs/nbp/tokenizer --steps 1000
  python -m megatron_videogpt codec train fsq --output runs/tiny_fsq --videos /data/clips --bf16 --threads 1
"""

UNSEEN = 1_000_000
"""First seed of the scenes that it is measured on."""
SQUARES = 30  # what squares weigh: they are small where most of a picture is right, and sharpen what is not
WHOLE = 0.25  # of the steps see whole frames, as many pixels as the others: norms see other statistics there
STILL = 4 / 255  # change of a pixel below which it stands still


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    share: dict[str, Any] = {"type": float, "metavar": "X"}

    def add(name: str, default: Any, text: str, **more: Any) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: %(default)s)", **more)

    parser.add_argument("--output", type=paths.path, required=True, help="the folder to make; it must not exist")
    parser.add_argument("--videos", type=paths.path, help="folder of real clips (not searched recursively)")
    add("--held-out", HELD_OUT, "comma-separated file names kept for the test")
    add("--real", 0.3, "share of the pieces that come from them", **share)
    add("--steps", 9000, "optimizer steps", **number)
    add("--levels", [8, 8, 5, 5], "levels of each latent channel", nargs="+", **number)
    add("--width", 8, "channels at full resolution", **number)
    add("--groups", 4, "groups of a norm", **number)
    add("--units", 1, "residual units of a stage", **number)
    add("--scenes", 1024, "scenes to learn from, kept in memory", **number)
    add("--size", 64, "side of a frame in pixels", **number)
    add("--frames", 17, "frames of a clip, 1 + 4n", **number)
    add("--crop", 32, "side of the piece of a picture that is learned from", **number)
    add("--interval", 2, "simulated frames from one to the next", **number)
    add("--batch", 8, "pieces of a step", **number)
    add("--lr", 2e-3, "peak learning rate of Adam", **share)
    add("--still", 0.05, "weight of how far digits move where the picture stands still", **share)
    add("--every", 500, "steps between points of the curve, at which the folder is written too", **number)
    add("--threads", 0, "CPU threads; 0 uses all cores", **number)
    add("--seed", 0, "seed of weights and order", **number)
    parser.add_argument("--bf16", action="store_true", help="convolutions in bf16: faster on CPUs that have it")


def flicker(inside: Tensor, video: Tensor) -> Tensor:
    """How far digits move, in levels and summed over channels, from a latent frame to the next where no pixel of their
    8x8 block changes, from the frame before both on; the mean over such places.

    inside: [B, d, 1 + n, h, w] before rounding; video: [B, 3, 1 + 4n, 8h, 8w].
    """
    change = (video[:, :, 1:] - video[:, :, :-1]).abs().amax(1)
    change = functional.max_pool2d(change, SPATIAL_STRIDE)
    groups = change.unflatten(1, (-1, TEMPORAL_STRIDE)).amax(2)
    before = torch.cat([torch.zeros_like(groups[:, :1]), groups[:, :-1]], 1)
    still = (torch.maximum(groups, before) < STILL).float()
    moved = (inside[:, :, 1:] - inside[:, :, :-1]).abs().sum(1)
    return (moved * still).sum() / still.sum().clamp(min=1)


def learn(model: FSQTokenizer, pool: Pool, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Gradients of one step's loss; mean squared error, and `flicker`."""
    whole = args.crop < args.size and pool.rng.random() < WHOLE
    side = args.size if whole else args.crop
    count = max(1, args.batch * args.crop**2 // args.size**2) if whole else args.batch
    video = pool.batch(count, args.frames, side)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        features = model.features(video).float()
        error = model.pixels(quantized(features, model.shape.levels)).float() - video
    squared, moved = error.square().mean(), flicker(bounded(features, model.shape.levels), video)
    (SQUARES * squared + error.abs().mean() + args.still * moved).backward()
    return squared.detach(), moved.detach()


def train(model: FSQTokenizer, pool: Pool, test: Tensor, args: argparse.Namespace, console: Console) -> None:
    """All steps; a cosine after a short warm-up.  The folder is written at every point of the curve."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    mean, curve, started = 0.0, [], time.time()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("training", total=args.steps)
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            optimizer.zero_grad(set_to_none=True)
            squared, moved = learn(model, pool, args)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean += (squared.item() - mean) / min(step + 1, 50)
            progress.update(bar, advance=1, description=f"training  {-10 * math.log10(mean):.2f} dB")
            if (step + 1) % args.every == 0 or step + 1 == args.steps:
                point = {"step": step + 1, "seconds": time.time() - started, "flicker": moved.item()}
                curve.append({**point, **measured(model, test)})
                (args.output / "curve.json").write_text(json.dumps(curve, indent=2) + "\n", encoding="utf-8")
                model.save_pretrained(args.output)


def measured(model: FSQTokenizer, video: Tensor) -> dict[str, float]:
    """Of a video [B, 3, F, H, W]: PSNR in dB over all pixels and frames, codes used, share of the ids that differ from
    those of the latent frame before.
    """
    with torch.no_grad():
        ids = torch.cat([model.encode(part) for part in video.split(1)])
        out = torch.cat([model.decode(part) for part in ids.split(1)])
    error = float((out - video).square().mean())
    changed = float((ids[:, 1:] != ids[:, :-1]).float().mean())
    return {"psnr": -10 * math.log10(error), "codes": len(ids.unique()), "changed": changed}


def draw(output: Path) -> None:
    """curve.png of curve.json."""
    from matplotlib.figure import Figure

    curve = json.loads((output / "curve.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["step"] for point in curve], [point["psnr"] for point in curve], marker=".")
    axes.set(xlabel="optimizer step", ylabel="PSNR in dB, unseen scenes")
    axes.grid(alpha=0.3)
    figure.savefig(output / "curve.png", dpi=120)


def run(args: argparse.Namespace) -> None:
    """Train, measure, write; UserError, one line, when that cannot be done."""
    console = Console(stderr=True)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    torch.manual_seed(args.seed)
    model, videos, held_out = prepared(args)
    started = time.time()
    pool = Pool(args.size, args.frames, args.interval, args.scenes, videos, args.real if videos else 0, args.seed)
    unseen = {path.name: clip_parts(path, args.frames, 3, (args.size,)) for path in held_out}
    args.output.mkdir(parents=True)
    settings = {**settings_of(args), "videos": [path.name for path in videos]}
    (args.output / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    last: Any = model.decoder_layers[-1]
    last.conv.bias.data.copy_(pool.batch(64, args.frames, args.crop).mean((0, 2, 3, 4)))
    test = as_video(scenes(args.size, 24, UNSEEN, args.frames, args.interval))
    train(model, pool, test, args, console)
    draw(args.output)
    found = measured(model.eval(), test)
    print(
        f"{args.output}: {found['psnr']:.2f} dB on 24 unseen scenes of {args.frames} frames, {found['codes']} of "
        f"{model.shape.codebook_size} codes used there, {time.time() - started:.0f} s"
    )
    for name, parts in unseen.items():
        clips = [as_video(part[None, :, : args.size, : args.size]) for part in parts]
        values = [measured(model, clip)["psnr"] for clip in clips]
        print(f"{name}: {sum(values) / len(values):.2f} dB" if values else f"{name}: too short")


def prepared(args: argparse.Namespace) -> tuple[FSQTokenizer, list[Path], list[Path]]:
    """(tokenizer, clips to learn from, unseen clips); UserError."""
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists already; give a new name, or remove it first")
    for name in ("steps", "scenes", "size", "frames", "crop", "interval", "batch", "every"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if not 0 <= args.real <= 1:
        raise UserError(f"--real {args.real}: must be from 0 to 1")
    if args.still < 0 or args.lr <= 0:
        raise UserError(f"--still {args.still} --lr {args.lr}: must be at least 0, and above 0")
    try:
        model = FSQTokenizer(FSQShape(args.width, args.groups, args.units, tuple(args.levels)))
        check_video(torch.empty(1, 3, args.frames, args.size, args.size))
        check_video(torch.empty(1, 3, args.frames, args.crop, args.crop))
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.crop > args.size:
        raise UserError(f"--crop {args.crop}: must be at most --size {args.size}")
    if args.videos is None:
        return model, [], []
    return model, *find_clips(args.videos, {name for name in args.held_out.split(",") if name})
