"""Codecs: the shipped one's quality, the diffusers ones against diffusers itself (tiny random weights), unusable
folders.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.geometry import TINY_WEIGHTS, codec_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import PhysicsConfig
from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.sources.physics import render_scene
from megatron_videogpt.data.video.pictures import resize_frames, to_model_range, to_pixels
from tests import clips

WAN_MEAN, WAN_STD = [0.1, -0.2, 0.3, 0.4], [0.5, 1.0, 2.0, 4.0]


@pytest.fixture(scope="module")
def tiny():
    return build_codec(CodecConfig())


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=5,
        scaling_factor=0.25,
        shift_factor=0.5,
        **blocks,
    )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=WAN_MEAN, latents_std=WAN_STD
    )
    vae.save_pretrained(folder)
    return folder


def decibels(codec, frames: np.ndarray) -> float:
    out = to_pixels(codec.decode(codec.encode(to_model_range(frames))[0]))
    return 10 * math.log10(255**2 / np.square(out.astype(np.float64) - frames).mean())


def test_tiny_on_unseen_scenes(tiny) -> None:
    """At least 32 dB on scenes whose keys training never saw (it uses keys below 100,000)."""
    frames = np.concatenate([render_scene(PhysicsConfig(), 5_000_000 + i, 4, 9) for i in range(12)])
    assert decibels(tiny, frames) >= 32


@pytest.mark.parametrize("name", [clips.CARS, *({"imageio_cockatoo.mp4"} & clips.more().keys())])
def test_tiny_on_unseen_clips(tiny, videos: Path, name: str) -> None:
    """At least 26 dB on clips held out of training."""
    path = videos / name
    frames = resize_frames(read_frames(path, np.linspace(0, probe(path).frames - 1, 6).astype(int)), 128, 16)
    assert decibels(tiny, frames) >= 26


def test_tiny_latents_are_about_normal(tiny) -> None:
    frames = np.concatenate([render_scene(PhysicsConfig(difficulty=i % 3), 6_000_000 + i, 2, 9) for i in range(24)])
    latents, logvar = tiny.encode(to_model_range(frames))
    assert logvar is None and latents.shape == (48, tiny.channels, 8, 8)
    assert latents.mean().abs() < 0.4 and 0.6 < latents.std() < 1.4


def test_tiny_takes_any_size_and_batch_size_changes_nothing(tiny) -> None:
    video = torch.rand(5, 3, 40, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, _ = tiny.encode(video)
    assert latents.shape == (5, tiny.channels, 5, 9) and tiny.decode(latents).shape == video.shape
    torch.testing.assert_close(build_codec(CodecConfig(batch_size=2)).encode(video)[0], latents, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny.encode(torch.zeros(1, 3, 60, 64))


def test_tiny_ships_small_and_described() -> None:
    assert TINY_WEIGHTS.stat().st_size <= 4 * 1000 * 1000
    geometry = codec_geometry(CodecConfig())
    tiny = build_codec(CodecConfig())
    assert (geometry.channels, geometry.spatial_stride, geometry.temporal_stride) == (tiny.channels, 8, 1)
    assert len(tiny.fingerprint) == 64 and tiny.fingerprint == build_codec(CodecConfig(batch_size=3)).fingerprint


def test_kl_equals_diffusers(kl_folder: Path) -> None:
    from diffusers import AutoencoderKL

    codec = build_codec(CodecConfig("autoencoder_kl", str(kl_folder), batch_size=2))
    video = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = AutoencoderKL.from_pretrained(kl_folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        posterior = vae.encode(video).latent_dist
        expected = vae.decode(posterior.mean).sample.clamp(-1, 1)
    mean, logvar = codec.encode(video)
    torch.testing.assert_close(mean, (posterior.mean - 0.5) * 0.25, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((logvar / 2).exp(), posterior.std * 0.25, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(codec.decode(mean), expected, atol=1e-4, rtol=0)
    assert (
        mean.shape == (3, 5, 4, 6)
        and codec_geometry(CodecConfig("autoencoder_kl", str(kl_folder))).spatial_stride == codec.spatial_stride == 4
    )


def test_wan_equals_diffusers(wan_folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    config = CodecConfig("autoencoder_kl_wan", str(wan_folder), batch_size=2)
    codec = build_codec(config)
    geometry = codec_geometry(config)
    assert (geometry.channels, geometry.spatial_stride, geometry.temporal_stride) == (4, 8, 4)
    video = torch.rand(9, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = AutoencoderKLWan.from_pretrained(wan_folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        posterior = vae.encode(video.permute(1, 0, 2, 3)[None]).latent_dist
        expected = vae.decode(posterior.mean).sample[0].permute(1, 0, 2, 3).clamp(-1, 1)
    mean, logvar = codec.encode(video)
    assert mean.shape == (3, 4, 2, 3)
    for channel in range(4):
        raw_mean, raw_std = posterior.mean[0, channel], posterior.std[0, channel]
        torch.testing.assert_close(
            mean[:, channel], (raw_mean - WAN_MEAN[channel]) / WAN_STD[channel], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close((logvar[:, channel] / 2).exp(), raw_std / WAN_STD[channel], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(codec.decode(mean), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="1 \\+ 4n frames"):
        codec.encode(video[:8])


def test_fingerprint_changes_with_weights_and_settings(kl_folder: Path, tmp_path: Path) -> None:
    state = load_file(kl_folder / "diffusion_pytorch_model.safetensors")
    settings = json.loads((kl_folder / "config.json").read_text())
    prints = {build_codec(CodecConfig("autoencoder_kl", str(kl_folder))).fingerprint}
    for scaling, factor in ((0.25, 1.01), (0.3, 1.0)):
        save_file(
            {name: tensor * factor for name, tensor in state.items()}, tmp_path / "diffusion_pytorch_model.safetensors"
        )
        (tmp_path / "config.json").write_text(json.dumps({**settings, "scaling_factor": scaling}))
        prints.add(build_codec(CodecConfig("autoencoder_kl", str(tmp_path))).fingerprint)
    assert len(prints) == 3


def test_unusable_folders_are_one_line(kl_folder: Path, wan_folder: Path, tmp_path: Path) -> None:
    def broken(name: str, settings: str | None = None, weights: bytes | None = None, extra: str = "") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((kl_folder / "config.json").read_text() if settings is None else settings)
        if weights is not None:
            (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
        if extra:
            (folder / extra).touch()
        return str(folder)

    state = load_file(kl_folder / "diffusion_pytorch_model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, tmp_path / "partial.safetensors")
    (tmp_path / "bare").mkdir()
    cases = [
        ("autoencoder_kl", "", "codec.path is empty"),
        ("autoencoder_kl", str(tmp_path / "nowhere"), "no such folder"),
        ("autoencoder_kl", str(tmp_path / "bare"), "no config.json"),
        ("autoencoder_kl", str(wan_folder), "holds AutoencoderKLWan"),
        ("autoencoder_kl_wan", str(kl_folder), "holds AutoencoderKL,"),
        ("autoencoder_kl", broken("json", settings="{"), "config.json cannot be read"),
        ("autoencoder_kl", broken("pickle", extra="diffusion_pytorch_model.bin"), "pickled weights are never loaded"),
        ("autoencoder_kl", broken("garbage", weights=b"not safetensors"), "weights do not load"),
        (
            "autoencoder_kl",
            broken("missing", weights=(tmp_path / "partial.safetensors").read_bytes()),
            "1 weights are missing",
        ),
        ("vqgan", "", "unknown codec"),
    ]
    for name, path, reason in cases:
        with pytest.raises(ValueError, match=reason) as caught:
            build_codec(CodecConfig(name, path))
        assert "\n" not in str(caught.value)
