#!/usr/bin/env python3
"""How well a tokenizer rebuilds held-out videos: PSNR, SSIM, LPIPS where AlexNet's weights are on this machine, Frechet
distance of plain features (evaluate/tokenizer.py), which codes it uses, and a picture with the true frames above the
rebuilt ones.

    python tools/convert_tokenizer.py runs/nbp/tokenizer_physics --output checkpoints/own-tokenizer
    python tools/measure_tokenizer.py checkpoints/own-tokenizer --run runs/nbp/tokenizer_physics

writes reconstruction.json and reconstruction.png into the run's folder.  Videos are those that the run held out, or
those of a configuration file (--config), with its size, frames and interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import RunError, UserError, exit_code, unusable  # noqa: E402


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=paths.path, help="its folder, as codec.path names it")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--run", type=paths.path, help="folder of a run, whose held-out videos are taken")
    where.add_argument("--config", type=paths.path, help="a configuration, whose held-out videos are taken")
    parser.add_argument("--output", type=paths.path, help="folder to write to (default: that of --run)")
    parser.add_argument("--samples", type=int, default=64, help="videos (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> str:
    """The command; the line that says what was found."""
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: must be at least 1")
    output = args.output or args.run
    if output is None:
        raise UserError("--output: needed with --config; give the folder to write reconstruction.json to")
    if not output.is_dir():
        raise UserError(f"{output}: no such folder; make it first")
    import torch

    from megatron_videogpt.codec.pixels import PixelCodec
    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.data.loader import HeldOut, readable
    from megatron_videogpt.data.sources.open import open_source
    from megatron_videogpt.evaluate.tokenizer import picture, rebuild, score
    from megatron_videogpt.hub.common.fsq_tokenizer import TEMPORAL_STRIDE, FSQTokenizer
    from megatron_videogpt.sample.compare import find_lpips

    torch.set_num_threads(args.threads)
    config = load_config(args.config or args.run / "config.toml")
    try:
        model = FSQTokenizer.from_pretrained(args.tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    frames = config.data.frames
    if config.codec.name != PixelCodec.name:
        # Of a run on the tokenizer's codes, which counts latent frames.
        frames = 1 + TEMPORAL_STRIDE * (frames - 1)
    config = replace(config, data=replace(config.data, frames=frames, min_frames=0))
    codec = PixelCodec()
    with HeldOut(open_source(config.data, codec), codec, config) as held:
        numbers = readable(config, args.samples, held.read)
        true = [held.samples[number].pixels for number in numbers]
    videos = [video for video in true if video is not None]
    made, ids = rebuild(model, videos)
    lpips, why = find_lpips()
    found = {"tokenizer": str(args.tokenizer), **score(made, videos, ids, model.shape.levels, lpips)}
    try:
        path = output / "reconstruction.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        picture(made, videos, output / "reconstruction.png")
    except OSError as error:
        raise unusable(output, error) from error
    use = found["codebook"]
    names = [("psnr", "PSNR {:.2f} dB"), ("ssim", "SSIM {:.4f}"), ("lpips", "LPIPS {:.4f}")]
    names.append(("frechet", "Frechet distance of plain features {:.2e}"))
    numbers_said = ", ".join(text.format(found[name]) for name, text in names if found[name] is not None)
    said = f"{numbers_said}, {use['used']:,} of {use['codes']:,} codes used ({100 * use['share']:.1f} %)"
    return f"{len(videos)} videos of {frames} frames: {said}{f' ({why})' if why else ''}; {path}"


def main() -> int:
    """Measure; 2 with one line on stderr when that cannot be done."""
    try:
        print(measure(arguments()))
    except (UserError, RunError, OSError) as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
