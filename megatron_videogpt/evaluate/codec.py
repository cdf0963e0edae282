"""`python -m megatron_videogpt codec psnr`: what a codec keeps of videos."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from ..codec.base import Codec
from ..codec.build import build_codec
from ..codec.options import CodecConfig
from ..config import paths
from ..data.bad import BadVideo
from ..data.decode import probe, read_frames
from ..data.sources.files import list_videos
from ..data.video.pictures import resize_frames, to_model_range, to_pixels
from ..errors import UserError

DESCRIPTION = """\
How well a codec keeps your own videos: PSNR of frames encoded to latents and decoded again, per video and over all.

A trained model cannot look better than its codec, so look at this first.  26 dB and more is fair, 30 dB is good.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt codec psnr videos/
  python -m megatron_videogpt codec psnr videos/ --codec autoencoder_kl --path checkpoints/sdxl-vae \\
      --longest-side 320
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("folder", type=paths.path, help="folder of videos, searched recursively")
    parser.add_argument("--codec", default="tiny", help="as codec.name in a configuration (default: %(default)s)")
    parser.add_argument("--path", type=paths.place, default="", help="as codec.path")
    parser.add_argument("--longest-side", type=int, default=128, help="as data.longest_side (default: %(default)s)")
    parser.add_argument("--size-multiple", type=int, default=16, help="as data.size_multiple (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=9, help="evenly spaced frames of each video (default: %(default)s)"
    )


@torch.no_grad()
def squared_error(codec: Codec, path: Path, count: int, longest_side: int, multiple: int) -> float:
    """Mean squared error of 8-bit values over evenly spaced frames of one video; raises BadVideo."""
    indices = sorted({int(index) for index in np.linspace(0, probe(path).frames - 1, count)})
    # A codec with a temporal stride joins groups of frames after the first one.
    indices = indices[: (len(indices) - 1) // codec.temporal_stride * codec.temporal_stride + 1]
    frames = resize_frames(read_frames(path, indices), longest_side, multiple)
    mean, _ = codec.encode(to_model_range(frames))
    return float(np.square(to_pixels(codec.decode(mean)).astype(np.float64) - frames).mean())


def psnr(error: float) -> float:
    """Mean squared error of 8-bit values -> PSNR in dB."""
    return 10 * math.log10(255**2 / max(error, 1e-12))


def run(args: argparse.Namespace) -> None:
    """Print one line per video and the mean; UserError when no video could be read."""
    codec, videos = build_codec(CodecConfig(name=args.codec, path=args.path)), list_videos(args.folder)
    values = []
    for path in videos:
        try:
            values.append(psnr(squared_error(codec, path, args.frames, args.longest_side, args.size_multiple)))
        except (BadVideo, UserError) as error:
            print(f"   skipped  {' '.join(str(error).split())}")
            continue
        print(f"{values[-1]:7.1f} dB  {path}")
    if not values:
        raise UserError(f"{args.folder}: no video there can be read; give a folder with video files")
    print(
        f"{sum(values) / len(values):7.1f} dB  mean of {len(values)} videos, codec {codec.name}, longest side "
        f"{args.longest_side}"
    )
