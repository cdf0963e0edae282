"""A small AutoencoderKL with random weights, for tests that encode."""

from __future__ import annotations

from pathlib import Path

import torch


def small_kl(folder: Path, seed: int = 0) -> Path:
    """Stride 8, 4 latent channels; its log-variances differ from frame to frame."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
        **blocks,
    )
    vae.save_pretrained(folder)
    return folder
