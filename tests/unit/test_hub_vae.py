"""The VAEs of exported folders: scaled as diffusers' own pipelines do it, and as the codecs do it in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.data.video.pictures import to_model_range
from tests import dense
from tests.data.vae import small_kl
from tests.hub_folder import export

pytest.importorskip("transformers", reason="the stand-alone model needs transformers (the extra hub)")

from megatron_videogpt.hub.common import frames_videogpt as frames_module  # noqa: E402
from tests.unit.test_hub import close  # noqa: E402
from tests.unit.test_hub_pipeline import picture  # noqa: E402

MEAN, STD, FACTOR = (0.5, -1.0, 0.25, 2.0), (0.5, 2.0, 4.0, 1.25), 0.13025


def normalised_kl(folder: Path) -> Path:
    """A VAE with latents_mean and latents_std."""
    path = small_kl(folder) / "config.json"
    more = {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": FACTOR, "shift_factor": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


def test_an_exported_vae_is_normalised_as_diffusers_xl_does(tmp_path: Path) -> None:
    """Decoding as StableDiffusionXLPipeline has it, `latents * latents_std / scaling_factor + latents_mean`; what it
    decodes was encoded by the inverse.
    """
    vae = frames_module.load_vae(normalised_kl(tmp_path), None)
    frames = picture(2, 16, 24)
    with torch.no_grad():
        raw = vae.encode(to_model_range(frames)).latent_dist.mean
        latents = frames_module.encode(vae, frames)
        mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (MEAN, STD))
        close(latents * std / FACTOR + mean, raw, 1e-5)
        other = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))
        shown = vae.decode(other * std / FACTOR + mean, return_dict=False)[0]
    close(frames_module.decode(vae, other[:0], other), (shown / 2 + 0.5).clamp(0, 1), 1e-5)


def test_vaes_agree_with_training(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    wan = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latents_mean": [0.1, -0.2, 0.3, 0.4],
        "latents_std": [0.5, 1.5, 2.0, 1.0],
    }
    torch.manual_seed(0)
    AutoencoderKLWan(**wan).save_pretrained(tmp_path / "wan")
    for number, (name, path) in enumerate(
        (
            ("tiny", ""),
            ("autoencoder_kl", str(small_kl(tmp_path / "kl"))),
            ("autoencoder_kl", str(normalised_kl(tmp_path / "normalised"))),
            ("autoencoder_kl_wan", str(tmp_path / "wan")),
        )
    ):
        config = CodecConfig(name=name, path=path)
        codec, folder = (
            build_codec(config),
            export(tmp_path / f"folder_{number}", dense.Tiny(), dense.random_weights(dense.Tiny(), 0), config),
        )
        vae = frames_module.TinyVAE(codec.model) if name == "tiny" else frames_module.load_vae(folder / "vae", None)
        assert frames_module.pixel_multiple(vae, 2) == 2 * codec.spatial_stride
        frames = picture(9, 32, 48)
        latents = codec.encode(to_model_range(frames))[0]
        close(frames_module.encode(vae, frames), latents, 1e-5)
        close(frames_module.decode(vae, latents[:1], latents[1:]) * 2 - 1, codec.decode(latents)[1:], 1e-5)
