"""`python -m megatron_videogpt codec train tiny`: the codec that the project ships."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import save_file

from ...config import paths
from ...data.video.pictures import to_model_range, to_pixels
from ...hub.common.tiny_codec import STRIDE, TinyAutoencoder, TinyShape
from ...platforms import PLATFORMS, activate
from .tiny_frames import HELD_OUT, Pools, find_clips, physics_frames, real_frames, settings_of

DESCRIPTION = """\
Train the tiny codec that the project ships (megatron_videogpt/codec/tiny_codec.safetensors and .json).

Two phases share one cosine schedule.  First encoder and decoder learn together, starting from principal components of
8x8 blocks, with a little noise on the latents, so that the decoder forgives imperfect ones.  Then the encoder is
frozen, its latents' mean and variance are measured and baked in, and the decoder alone learns on.

Real clips are cut from a folder of videos; whole files named with --held-out are the unseen test (list every cut of the
same footage).  Physics scenes come from the built-in generator, test scenes from other seeds.
"""

EXAMPLES = """\
examples (this made the shipped weights):
  python -m megatron_videogpt codec train tiny --videos /data/clips --output runs/codec --threads 1
"""

TEST_SIDES = (64, 128, 256)
CROPS = ((64, 32), (64, 32), (96, 14), (128, 8))  # (side, batch): about equal work a step
DECODER = ("open", "decoder", "upscale", "fine", "paint", "linear_paint")
DRIFT = 3e-3  # weight of the pull of latents towards zero mean and unit variance while the encoder learns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "--videos", type=paths.path, required=True, help="folder of real clips (not searched recursively)"
    )
    parser.add_argument(
        "--held-out", default=HELD_OUT, help="comma-separated file names kept for the test (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=paths.path,
        default=Path("runs/codec"),
        help="folder for weights, shape, report and settings (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5000,
        help="optimizer steps; about 10 a second on a core with bf16 (default: %(default)s)",
    )
    parser.add_argument(
        "--joint",
        type=float,
        default=0.6,
        help="share of the steps in which the encoder learns too (default: %(default)s)",
    )
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate of AdamW (default: %(default)s)")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.08,
        help="largest standard deviation of the noise on latents (default: %(default)s)",
    )
    parser.add_argument("--channels", type=int, default=16, help="latent channels (default: %(default)s)")
    parser.add_argument("--encoder-width", type=int, default=96)
    parser.add_argument("--encoder-blocks", type=int, default=1)
    parser.add_argument("--decoder-width", type=int, default=128)
    parser.add_argument("--decoder-blocks", type=int, default=2)
    parser.add_argument("--fine-width", type=int, default=64)
    parser.add_argument("--fine-blocks", type=int, default=2)
    parser.add_argument(
        "--statistics",
        choices=("fixed", "batch"),
        default="fixed",
        help="normalise latents, while the encoder learns, by fixed statistics with a pull towards them, or by "
        "each batch's own: "
        "batch learns slower (docs/codec.md) (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; 0 uses all cores (only on an idle machine: busy ones stall the threads) (default: "
        "%(default)s)",
    )
    parser.add_argument("--device", choices=PLATFORMS, default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--fp32", action="store_true", help="do not compute in bf16 (bf16 is quicker on CPUs that have it)"
    )


def train(model: TinyAutoencoder, pools: Pools, args: argparse.Namespace, console: Console) -> None:
    """Both phases; leaves the model with its normalisation baked in."""
    device = next(model.parameters()).device
    noise = torch.Generator(device=device).manual_seed(args.seed + 1)
    decoder = [p for name, p in model.named_parameters() if name.split(".")[0] in DECODER]
    model.start_from_principal_components(torch.cat([pools.batch(64, 32) for _ in range(32)]))
    # Normalising by a batch's own statistics hides brightness and contrast from the decoder; a pull towards fixed ones
    # does not.
    start_mean = channel_mean(model, pools, device) if args.statistics == "fixed" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    joint, mean_loss = int(args.steps * args.joint), 0.0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=args.steps)
        for step in range(args.steps):
            if step == joint:
                freeze_encoder(model, pools, device)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            side, count = CROPS[int(pools.rng.integers(len(CROPS)))]
            pixels = pools.batch(side, count).to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not args.fp32):
                drift = torch.zeros((), device=device)
                if step < joint:
                    latents = model.raw_latents(pixels).float()
                    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
                    if start_mean is None:
                        latents = (latents - mean[:, None, None]) * torch.rsqrt(variance + 1e-6)[:, None, None]
                    else:
                        drift = (mean - start_mean).square().mean() + (variance - 1).square().mean()
                        latents = latents - start_mean[:, None, None]
                else:
                    with torch.no_grad():
                        latents = model.encode(pixels).float()
                sigma = args.noise * torch.rand(count, 1, 1, 1, generator=noise, device=device)
                latents = latents + sigma * torch.randn(latents.shape, generator=noise, device=device)
                error = model.decode(latents).float() - pixels
            # The square root turns large scenes' errors down: PSNR is an average of logarithms, not of squares.
            loss = (error.square().mean((1, 2, 3)) + 1e-5).sqrt().mean() + DRIFT * drift
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters() if step < joint else decoder, 1.0)
            optimizer.step()
            mean_loss += (error.detach().square().mean().item() - mean_loss) / min(step + 1, 200)
            progress.update(bar, advance=1, description=f"training  {10 * math.log10(4 / mean_loss):.2f} dB")
            if (step + 1) % 500 == 0:
                console.print(
                    f"step {step + 1}: training mixture {10 * math.log10(4 / mean_loss):.2f} dB", highlight=False
                )


@torch.no_grad()
def channel_mean(model: TinyAutoencoder, pools: Pools, device: torch.device) -> torch.Tensor:
    """Mean of every latent channel over the training mixture [channels]."""
    return model.raw_latents(torch.cat([pools.batch(64, 32) for _ in range(32)]).to(device)).mean((0, 2, 3))


@torch.no_grad()
def freeze_encoder(model: TinyAutoencoder, pools: Pools, device: torch.device) -> None:
    """Measure mean and standard deviation of every latent channel over the training mixture, bake them in, stop encoder
    gradients.
    """
    latents = torch.cat([model.raw_latents(pools.batch(64, 32).to(device)).flatten(2) for _ in range(100)])
    # No float64 on a device: NPUs have none.
    deviation, mean = torch.std_mean(latents.cpu().double(), dim=(0, 2))
    model.shift.copy_(mean.float())
    model.scale.copy_((1 / deviation).float())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in DECODER)


@torch.no_grad()
def psnr(model: TinyAutoencoder, frames: np.ndarray, noise: float = 0.0) -> float:
    """Decibels over all pixels of uint8 [F, H, W, 3], after rounding to 8 bits (peak 255)."""
    generator, total = torch.Generator().manual_seed(7), 0.0
    device = next(model.parameters()).device
    for start in range(0, len(frames), 32):
        latents = model.encode(to_model_range(frames[start : start + 32]).to(device)).cpu()
        latents = latents + noise * torch.randn(latents.shape, generator=generator)
        out = to_pixels(model.decode(latents.to(device)))
        total += float(np.square(out.astype(np.float64) - frames[start : start + 32]).sum())
    return 10 * math.log10(255**2 / (total / frames.size))


def report(model: TinyAutoencoder, held_out: list[Path]) -> dict[str, dict[str, float]]:
    """PSNR of unseen physics scenes and unseen clips."""
    results: dict[str, dict[str, float]] = {}
    for difficulty in (0, 1, 2):
        for size in (64, 128):
            frames = physics_frames(difficulty, size, 64, 1_000_000 + 10_000 * difficulty)
            results[f"physics difficulty {difficulty}, {size} px"] = {
                "psnr": psnr(model, frames),
                "noisy": psnr(model, frames, 0.1),
            }
    for path in held_out:
        for side, frames in zip(TEST_SIDES, real_frames(path, 24, TEST_SIDES)):
            results[f"{path.name}, {side} px"] = {"psnr": psnr(model, frames), "noisy": psnr(model, frames, 0.1)}
    return results


def run(args: argparse.Namespace) -> None:
    """Train, measure, write; UserError, one line, when that cannot be done."""
    if args.channels < 1 or args.channels & (args.channels - 1):
        args.parser.error(
            f"--channels {args.channels}: must be a power of two (the start from principal components needs it)"
        )
    console = Console()
    device = activate(args.device).device
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    torch.manual_seed(args.seed)
    shape = TinyShape(
        args.channels,
        args.encoder_width,
        args.encoder_blocks,
        args.decoder_width,
        args.decoder_blocks,
        args.fine_width,
        args.fine_blocks,
    )
    training, held_out = find_clips(args.videos, {name for name in args.held_out.split(",") if name})
    pools = Pools(training, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {
        **settings_of(args),
        "training": [p.name for p in training],
    }
    (args.output / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    model = TinyAutoencoder(shape).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    started = time.time()
    train(model, pools, args, console)
    seconds = time.time() - started
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, args.output / "tiny_codec.safetensors")
    (args.output / "tiny_codec.json").write_text(json.dumps(shape.to_dict(), indent=2) + "\n", encoding="utf-8")
    model.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}
    )  # report what was saved, in half precision
    results = report(model, held_out)
    summary = {
        "seconds": round(seconds, 1),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "psnr": results,
    }
    (args.output / "report.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    table = Table(
        "unseen",
        "PSNR dB",
        "with latent noise 0.1",
        title=f"{args.steps} steps in {seconds:.0f} s, stride {STRIDE}, {shape.channels} channels",
    )
    for name, row in results.items():
        table.add_row(name, f"{row['psnr']:.2f}", f"{row['noisy']:.2f}")
    console.print(table)
