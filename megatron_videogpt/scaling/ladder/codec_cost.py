"""FLOPs of encoding: of diffusers' AutoencoderKL in closed form, of others as torch counts them on tensors without
numbers.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...codec.geometry import WITHOUT_FOLDER, codec_folder, diffusers_settings, expected_geometry
from ...codec.options import CodecConfig
from ...config.derived import typical_frame
from ...config.schema import Config

KL = "autoencoder_kl"
SDXL = ((128, 256, 512, 512), 2, 4)
"""Of SDXL's VAE, from its published config.json: channels of its blocks, layers of a block, latent channels."""


def encoding_flops(config: Config) -> float | None:
    """FLOPs of encoding the frames of one sample of typical size, forward only; SDXL's of an `autoencoder_kl` whose
    folder is not there, None of other codecs that are not there.

    Shards of latents need none of it; which shards hold latents only the data tells.
    """
    codec, (height, width) = config.codec, typical_frame(config)
    there = codec.name in WITHOUT_FOLDER or Path(codec_folder(codec) or "/nowhere").is_dir()
    frames = expected_geometry(codec).pixel_frames(config.data.frames)
    if codec.name == KL:
        sizes = SDXL
        if there:
            found = diffusers_settings(codec)
            sizes = tuple(found["block_out_channels"]), found.get("layers_per_block", 1), found["latent_channels"]
        return frames * kl_flops(*sizes, height, width)
    return _counted(codec, frames, (height, width)) if there else None


def kl_flops(blocks: tuple[int, ...], layers: int, latent: int, height: int, width: int) -> float:
    """FLOPs of diffusers' AutoencoderKL for one frame, forward through its encoder: two for each weight and place, and
    those of the attention in its middle.
    """
    cells, before, total = height * width, blocks[0], 9.0 * 3 * blocks[0] * height * width
    for number, channels in enumerate(blocks):
        for _ in range(layers):
            total += cells * _unit(before, channels)
            before = channels
        if number < len(blocks) - 1:
            cells //= 4
            total += cells * 9 * channels * channels
    total += cells * (2 * _unit(before, before) + 4 * before * before) + 2 * cells * cells * before
    return 2 * (total + cells * (9 * before * 2 * latent + 4 * latent * latent))


def _unit(before: int, after: int) -> int:
    """Weights of a residual unit."""
    return 9 * (before * after + after * after) + (before * after if before != after else 0)


@lru_cache(maxsize=16)
def _counted(codec: CodecConfig, frames: int, frame: tuple[int, int]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ...codec.build import build_codec

    built = build_codec(codec).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.encode(torch.empty(frames, 3, *frame, device="meta"))
    return float(counter.get_total_flops())
