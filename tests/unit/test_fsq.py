"""The FSQ tokenizer: against a second writing of it, in pieces, as a codec whose codes survive storage, in unusable
folders and videos.  Against the original: tests/parity/test_fsq_parity.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.fsq import FSQCodec, codes_of, ids_of
from megatron_videogpt.codec.geometry import codec_geometry, expected_geometry, expected_levels
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.data.shards.latents import STORED, pack, to_stored
from megatron_videogpt.hub.common.fsq_codes import bounded, nearest, quantized
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer, filled, shape_of
from tests.tokenizer import EVERY, SMALL, Twin, config_with, random_tokenizer, saved, video
from tests.unit.test_latents import job

PUBLISHED = (8, 8, 8, 5, 5, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("fsq"), EVERY)


@pytest.fixture(scope="module")
def codec(folder: Path) -> FSQCodec:
    found = build_codec(CodecConfig("fsq", str(folder)))
    assert isinstance(found, FSQCodec)
    return found


def every_code(levels: tuple[int, ...]) -> Tensor:
    """[all, d]: codes in the order of their ids, the first channel fastest."""
    values = [[(digit - level // 2) / (level // 2) for digit in range(level)] for level in reversed(levels)]
    return torch.tensor(list(product(*values))).flip(1)


@pytest.mark.parametrize("shape", [SMALL, FSQShape(width=6, groups=3, units=2, levels=(7, 4))])
def test_equals_its_description(shape: FSQShape) -> None:
    model, clip = random_tokenizer(shape, 3), video(2, 3, 5, 16, 24)
    twin = Twin(model.state_dict(), shape)
    features = model.features(clip)
    assert features.shape == (2, len(shape.levels), 2, 2, 3)
    torch.testing.assert_close(features, twin.encode(clip), atol=2e-5, rtol=1e-4)
    codes = quantized(features, shape.levels)
    assert len(codes.unique()) > 4
    torch.testing.assert_close(model.pixels(codes), twin.decode(codes), atol=2e-5, rtol=1e-4)
    # One video without a gradient goes another way through oneDNN.
    with torch.no_grad():
        torch.testing.assert_close(model.features(clip[:1]), features[:1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model.pixels(codes[:1]), twin.decode(codes[:1]), atol=2e-5, rtol=1e-4)


def test_a_latent_frame_sees_no_later_frame_and_a_picture_is_a_video() -> None:
    model, clip = random_tokenizer(), video(1, 3, 9, 16, 16)
    other = clip.clone()
    other[:, :, 5:] = 1 - other[:, :, 5:]
    one, two = model.features(clip), model.features(other)
    assert torch.equal(one[:, :, :2], two[:, :, :2]) and not torch.allclose(one[:, :, 2], two[:, :, 2], atol=0.1)
    torch.testing.assert_close(model.features(clip[:, :, :1]), one[:, :, :1], atol=1e-5, rtol=1e-5)
    assert model.pixels(quantized(one, SMALL.levels)).shape == clip.shape


def test_long_videos_go_through_in_pieces(folder: Path, codec: FSQCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = video(41, 3, 16, 16) * 2 - 1
    whole = build_codec(replace(CodecConfig("fsq", str(folder)), batch_size=64))
    latents, pixels = whole.encode(clip)[0], whole.decode(whole.encode(clip)[0])
    longest, features = [], FSQTokenizer.features

    def noted(self: FSQTokenizer, x: Tensor, past: dict) -> Tensor:
        longest.append(x.shape[2])
        return features(self, x, past)

    monkeypatch.setattr(FSQTokenizer, "features", noted)
    for batch_size in (1, 6, 16):
        longest.clear()
        small = build_codec(replace(CodecConfig("fsq", str(folder)), batch_size=batch_size))
        assert torch.equal(small.encode(clip)[0], latents)
        torch.testing.assert_close(small.decode(latents), pixels, atol=1e-5, rtol=0)
        assert max(longest) == 1 + max(4, batch_size // 4 * 4)


def test_as_a_codec(folder: Path, codec: FSQCodec) -> None:
    clip = video(9, 3, 16, 24) * 2 - 1
    codes, logvar = codec.encode(clip)
    model = FSQTokenizer.from_pretrained(folder)
    ids = model.encode((clip + 1).transpose(0, 1)[None] / 2)
    assert logvar is None and codes.shape == (3, 6, 2, 3) and codes.dtype == torch.float32
    assert torch.equal(ids_of(codes, codec.levels), ids[0]) and torch.equal(codes_of(ids[0], PUBLISHED), codes)
    assert ids.dtype == torch.int64 and len(ids.unique()) > 8
    shown = codec.decode(codes)
    torch.testing.assert_close(shown, model.decode(ids)[0].transpose(0, 1) * 2 - 1)
    assert shown.shape == clip.shape and shown.min() >= -1 and shown.max() <= 1
    # Between the codes, as a model of continuous latents predicts: the nearest.
    off = codes + 0.1 * torch.rand(codes.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(codec.decode(off), shown)
    assert torch.equal(nearest(torch.tensor([[9.0, -9.0]]), (8, 5)), torch.tensor([[0.75, -1.0]]))


def test_geometry_and_fingerprint(folder: Path, codec: FSQCodec, tmp_path: Path) -> None:
    config = CodecConfig("fsq", str(folder))
    geometry = codec_geometry(config)
    assert (geometry.channels, geometry.spatial_stride, geometry.temporal_stride) == (6, 8, 4)
    assert (codec.channels, codec.spatial_stride, codec.temporal_stride) == (6, 8, 4)
    # Before the folder is there, the published one.
    assert expected_geometry(CodecConfig("fsq", "/nowhere")) == geometry
    assert expected_levels(config) == expected_levels(CodecConfig("fsq")) == codec.levels == PUBLISHED
    prints = {codec.fingerprint, build_codec(replace(config, batch_size=4)).fingerprint}
    assert len(prints) == 1
    prints.add(build_codec(CodecConfig("fsq", str(saved(tmp_path / "weights", EVERY, 1)))).fingerprint)
    other = saved(tmp_path / "levels", EVERY)
    config_with(other, levels=[8, 8, 8, 5, 5, 6])
    prints.add(build_codec(CodecConfig("fsq", str(other))).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize("levels", [PUBLISHED, (6, 7, 2, 3, 16)])
def test_every_code_survives_storage(levels: tuple[int, ...], tmp_path: Path) -> None:
    """Bit for bit where codes are binary fractions, as the published ones are; the ids in any case."""
    codes, size = every_code(levels), int(np.prod(levels))
    assert torch.equal(codes_of(torch.arange(size)[:, None, None], levels)[..., 0, 0], codes)
    side = next(n for n in range(int(size**0.5), 0, -1) if size % n == 0)
    frame = codes.T.reshape(1, len(levels), side, size // side)
    for stored in STORED:
        data, pixels = pack([to_stored(frame, None, stored)]), (side * 8, size // side * 8)
        sample = job(tmp_path / "a.tar", data, (0,), 1, channels=len(levels), size=pixels).read()
        read = torch.from_numpy(np.asarray(sample.mean))
        assert torch.equal(read, frame) == (stored == "fp32" or levels == PUBLISHED)
        assert torch.equal(ids_of(read, levels).flatten(), torch.arange(size))
        assert torch.equal(nearest(read, levels), frame)


def test_the_gradient_passes_the_rounding() -> None:
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    (rounded,) = torch.autograd.grad((quantized(z, SMALL.levels) * weight).sum(), z)
    halves = torch.tensor([4, 2, 2]).view(1, 3, 1)
    (smooth,) = torch.autograd.grad((bounded(z, SMALL.levels) / halves * weight).sum(), z)
    torch.testing.assert_close(rounded, smooth)


def test_codes_and_ids_that_do_not_exist() -> None:
    good = torch.zeros(1, 3, 2)
    for value, channel, levels, said in (
        (1.0, 0, (8, 5, 5), "1 in channel 0, expected one of 8 from -4/4 to 3/4"),
        (0.3, 1, (8, 5, 5), "0.3 in channel 1"),
        (float("nan"), 2, (8, 5, 5), "nan in channel 2"),
    ):
        bad = good.clone()
        bad[0, channel, 1] = value
        with pytest.raises(ValueError, match="codes outside the levels") as caught:
            ids_of(bad, levels)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected \\[B, 2, ...\\]"):
        ids_of(good, (8, 5))
    for wrong in (-1, 200):
        with pytest.raises(ValueError, match=f"id {wrong}: outside the codebook, expected 0 to 199"):
            codes_of(torch.tensor([[3, wrong]]), (8, 5, 5))


def test_videos_that_do_not_fit_are_one_line(codec: FSQCodec) -> None:
    for shape, said in (((6, 3, 16, 16), "6 frames: this codec takes 1 \\+ 4n"), ((5, 3, 20, 16), "multiples of 8")):
        with pytest.raises(ValueError, match=said):
            codec.encode(torch.zeros(shape))
    for shape, said in (
        ((1, 3, 6, 16, 16), "6 frames: expected 1 \\+ 4n"),
        ((1, 3, 5, 20, 16), "20x16 pixels: expected multiples of 8"),
        ((3, 5, 16, 16), "expected \\[B, 3, frames, height, width\\]"),
    ):
        with pytest.raises(ValueError, match=said):
            codec.model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="ids of shape \\[2, 2, 2\\]: expected"):
        codec.model.decode(torch.zeros(2, 2, 2, dtype=torch.long))


def test_unusable_folders_are_one_line(tmp_path: Path) -> None:
    def broken(name: str, weights: dict[str, Tensor | None] | bytes | None = None, **settings: object) -> str:
        folder = saved(tmp_path / name)
        config_with(folder, **settings)
        file = folder / "model.safetensors"
        if isinstance(weights, bytes):
            file.write_bytes(weights)
        elif weights:
            state = {key: value for key, value in (load_file(file) | weights).items() if value is not None}
            save_file(state, file)
        return str(folder)

    lost = broken("lost")
    (Path(lost) / "model.safetensors").unlink()
    key = "encoder_layers.1.fn.2.conv.weight"
    cases = [
        ("", "codec.path is empty"),
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path), "no config.json"),
        (lost, "no readable config.json and model.safetensors"),
        (broken("vae", _class_name="AutoencoderKL"), "holds AutoencoderKL"),
        (broken("levels", levels=[8, 1]), "levels \\[8, 1\\]; expected a list of whole numbers from 2 on"),
        (broken("width", width=None), "expected width, groups, units, levels"),
        (broken("groups", groups=3), "width=4: expected a multiple of groups=3"),
        (broken("units", units=2), "expected floating-point numbers"),
        (broken("garbage", b"not safetensors"), "no readable config.json and model.safetensors"),
        (broken("short", {key: None}), f"weights have nothing for {key}"),
        (broken("shape", {key: torch.zeros(4, 4, 3, 3)}), f"weights have \\[4, 4, 3, 3\\] for {key}"),
        (broken("more", {"discriminator.0.weight": torch.zeros(1)}), "weights have 'discriminator.0.weight'"),
    ]
    for path, reason in cases:
        with pytest.raises(ValueError, match=reason) as caught:
            build_codec(CodecConfig("fsq", path))
        assert "\n" not in str(caught.value) and str(caught.value).startswith("codec.path")


def test_sizes_that_cannot_be() -> None:
    for settings in ({"levels": "8"}, {"units": 0}, {"width": True}, {"width": 10**9}):
        with pytest.raises(ValueError, match="^here: config.json has"):
            shape_of(SMALL.to_dict() | settings, "here")
    with pytest.raises(ValueError, match="here: weights have nothing"):
        filled(SMALL, {}, "here")


def test_a_folder_stands_alone(folder: Path, tmp_path: Path) -> None:
    """Three lines, in a process where this package cannot be imported."""
    clip = video(1, 3, 5, 16, 16)
    save_file({"video": clip}, tmp_path / "video.safetensors")
    script = f"""
import sys
sys.modules["megatron_videogpt"] = None
from safetensors.torch import load_file, save_file
video = load_file({str(tmp_path / "video.safetensors")!r})["video"]
from fsq_tokenizer import FSQTokenizer
tokenizer = FSQTokenizer.from_pretrained({str(folder)!r})
ids = tokenizer.encode(video)
save_file({{"ids": ids, "video": tokenizer.decode(ids)}}, {str(tmp_path / "out.safetensors")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, model = load_file(tmp_path / "out.safetensors"), FSQTokenizer.from_pretrained(folder)
    assert torch.equal(found["ids"], model.encode(clip))
    torch.testing.assert_close(found["video"], model.decode(found["ids"]), atol=1e-6, rtol=0)
