"""What a codec's fingerprint covers, what earlier releases recorded, and VAEs whose settings have latents_mean and
latents_std, against diffusers' own steps of StableDiffusionXL.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.convert.standalone import write_vae
from megatron_videogpt.data.shards.latents import check_facts, facts_begun, facts_of
from megatron_videogpt.errors import RunError
from tests.data.vae import small_kl

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HALF = "diffusion_pytorch_model.fp16.safetensors"
MEAN, STD, FACTOR = [0.5, -1.0, 0.25, 2.0], [0.5, 2.0, 4.0, 1.25], 0.13025


def config_of(folder: Path) -> CodecConfig:
    return CodecConfig("autoencoder_kl", str(folder))


def built(folder: Path) -> Codec:
    return build_codec(config_of(folder))


def earlier(folder: Path, names: Sequence[str]) -> str:
    """What releases before this one recorded, had the folder these files only."""
    settings = json.loads((folder / "config.json").read_text())
    text = json.dumps({key: value for key, value in settings.items() if key[0] != "_"}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def change(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.fixture
def resume(processes: None) -> Callable[[str, Codec], None]:
    """What a run, or sampling, does with the fingerprint in a checkpoint."""
    from megatron_videogpt.checkpoint.checks import check_same_codec

    return lambda recorded, codec: check_same_codec(
        SimpleNamespace(path="run/step_8", state={"codec": recorded}),  # type: ignore[arg-type]
        codec,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_kl(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "vae"))


@pytest.fixture
def normalised(folder: Path) -> Path:
    return change(folder, latents_mean=MEAN, latents_std=STD, scaling_factor=FACTOR, shift_factor=None)


def with_half(folder: Path) -> Path:
    save_file({key: value.half() for key, value in load_file(folder / WEIGHTS).items()}, folder / HALF)
    return folder


def shard(folder: Path, names: Sequence[str]) -> None:
    """The weights dealt out to shards, and the index of them."""
    state = load_file(folder / WEIGHTS)
    places = {key: names[number % len(names)] for number, key in enumerate(sorted(state))}
    for name in names:
        save_file({key: value for key, value in state.items() if places[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def test_where_all_is_read_the_fingerprint_is_that_of_earlier_releases(plain: Path) -> None:
    codec = built(plain)
    assert codec.fingerprint == earlier(plain, [WEIGHTS])
    assert codec.identity.earlier == () and not codec.identity.accepts("") and not codec.identity.accepts(None)


def test_a_copy_that_is_not_read_changes_nothing(plain: Path, folder: Path, resume: Callable[..., None]) -> None:
    """The checkpoint and the latents of an earlier release, whose fingerprint covers the copy, stay usable while it is
    there.
    """
    before = earlier(with_half(folder), [HALF, WEIGHTS])
    codec = built(folder)
    assert codec.fingerprint == built(plain).fingerprint == earlier(plain, [WEIGHTS]) != before
    facts = facts_of(codec, 320, 16, "fp16")
    assert facts["fingerprint"] == codec.fingerprint
    for recorded in (before, codec.fingerprint):
        resume(recorded, codec)
        check_facts("lat", facts | {"fingerprint": recorded}, DataConfig(), codec)
    # Encoding that the earlier release began ends with its facts, and only with facts that are the same otherwise.
    begun = facts | {"fingerprint": before}
    assert facts_begun(begun, facts, codec) == begun and facts_begun(facts, facts, codec) == facts
    assert facts_begun(begun | {"stored": "fp32"}, facts, codec) == facts
    assert facts_begun(facts | {"fingerprint": "0"}, facts, codec) == facts
    (folder / HALF).unlink()
    gone = built(folder)
    assert gone.fingerprint == codec.fingerprint
    with pytest.raises(RunError, match=f"fingerprint {before[:12]}, this one has {gone.fingerprint[:12]}\\)"):
        resume(before, gone)
    with pytest.raises(ValueError, match=f"{before[:12]}.*{gone.fingerprint[:12]} \\(name and fingerprint\\): use"):
        check_facts("lat", begun, DataConfig(), gone)


def test_a_copy_that_vanishes_or_cannot_be_read_is_no_fault(folder: Path) -> None:
    (folder / HALF).symlink_to("nowhere")
    codec = built(folder)
    assert codec.fingerprint == earlier(folder, [WEIGHTS]) and not codec.identity.accepts("0")


def test_settings_that_no_class_reads_are_not_covered(plain: Path, folder: Path) -> None:
    before = earlier(change(folder, comment="from the trainer's own tool", _note=3), [WEIGHTS])
    codec = built(folder)
    assert codec.fingerprint == built(plain).fingerprint != before and codec.identity.accepts(before)
    assert built(change(folder, norm_num_groups=2)).fingerprint != codec.fingerprint


def test_shards_are_read_and_covered_and_a_whole_file_beside_them_is_not(plain: Path, folder: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shard(folder, names)
    video = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, codec = built(plain).encode(video)[0], built(folder)
    assert codec.fingerprint == earlier(folder, names) and codec.identity.accepts(earlier(folder, [*names, WEIGHTS]))
    (folder / WEIGHTS).write_bytes(b"never read")
    torch.testing.assert_close(built(folder).encode(video)[0], expected, rtol=0, atol=0)
    assert built(folder).fingerprint == codec.fingerprint
    (folder / WEIGHTS).unlink()
    assert built(folder).identity.earlier == ()
    (folder.parent / "exported").mkdir()
    write_vae(folder.parent / "exported", config_of(folder))
    copy = built(folder.parent / "exported" / "vae")
    assert copy.fingerprint == codec.fingerprint and torch.equal(copy.encode(video)[0], expected)
    state = load_file(folder / names[1])
    save_file({key: value * 2 for key, value in state.items()}, folder / names[1])
    assert built(folder).fingerprint != codec.fingerprint


def test_files_that_would_not_be_read_are_one_line(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / HALF)
    indices = {
        "no readable": ("{", f"{INDEX} cannot be read \\(JSONDecodeError"),
        "no map": ("{}", "cannot be read \\(KeyError: 'weight_map'\\); expected weight_map"),
        "empty": ('{"weight_map": {}}', "names no file"),
        "pickle": ('{"weight_map": {"a": "a.bin"}}', "names 'a.bin'; expected the plain name of a .safetensors file"),
        "outside": (f'{{"weight_map": {{"a": "../vae/{HALF}"}}}}', "names '../vae/"),
        "a number": ('{"weight_map": {"a": 3}}', "names 3;"),
        "missing": ('{"weight_map": {"a": "b.safetensors"}}', "no b.safetensors in it"),
        "no metadata": (f'{{"weight_map": {{"a": "{HALF}"}}}}', "weights do not load into its AutoencoderKL"),
    }
    cases = [(None, f"no {WEIGHTS} in it.*{HALF} is not read: rename it"), *indices.values()]
    for text, reason in cases:
        if text is not None:
            (folder / INDEX).write_text(text)
        with pytest.raises(ValueError, match=f"^codec.path={folder}: .*{reason}") as caught:
            built(folder)
        assert "\n" not in str(caught.value)


class Fixed:
    """A posterior's draw with noise that is known."""

    def __init__(self, vae: Any) -> None:
        self.config, self.vae = vae.config, vae

    def encode(self, image: torch.Tensor) -> Any:
        posterior = self.vae.encode(image).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
        return SimpleNamespace(latents=posterior.mean + posterior.std * noise)

    def to(self, dtype: torch.dtype) -> None:
        """It is float32."""


def test_latents_mean_and_std_are_those_of_diffusers_xl(normalised: Path) -> None:
    """Encoded as StableDiffusionXLImg2ImgPipeline does it, decoded as its step of diffusers' modular pipelines."""
    from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.modular_pipelines import PipelineState
    from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep

    codec, vae = built(normalised), AutoencoderKL.from_pretrained(normalised, low_cpu_mem_usage=False)
    video = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, logvar = codec.encode(video)
    assert logvar is not None
    with torch.no_grad():
        drawn = StableDiffusionXLImg2ImgPipeline.prepare_latents(
            SimpleNamespace(vae=Fixed(vae)),  # type: ignore[arg-type]
            *(video, None, 3, 1, torch.float32, torch.device("cpu")),
            add_noise=False,
        )
        raw = vae.encode(video).latent_dist.mean
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean + (logvar / 2).exp() * noise, drawn, atol=1e-5, rtol=1e-5)
    for channel in range(4):
        expected = (raw[:, channel] - MEAN[channel]) * FACTOR / STD[channel]
        torch.testing.assert_close(mean[:, channel], expected, atol=1e-6, rtol=1e-5)
    state = PipelineState()
    for name, value in (("latents", mean), ("output_type", "pt")):
        state.set(name, value)
    parts = SimpleNamespace(vae=vae, image_processor=VaeImageProcessor(vae_scale_factor=8))
    shown = StableDiffusionXLDecodeStep()(parts, state)[1].get("images")
    torch.testing.assert_close((codec.decode(mean) + 1) / 2, shown, atol=1e-5, rtol=0)
    with torch.no_grad():
        round_trip = vae.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(mean), round_trip, atol=1e-4, rtol=0)


def test_what_was_made_without_them_is_refused(normalised: Path, resume: Callable[..., None]) -> None:
    before, codec = earlier(normalised, [WEIGHTS]), built(normalised)
    assert codec.fingerprint != before and not codec.identity.accepts(before)
    also = earlier(with_half(normalised), [HALF, WEIGHTS])
    for recorded in (before, also):
        with pytest.raises(RunError, match="same, but earlier releases ignored its latents_mean") as one:
            resume(recorded, built(normalised))
        facts = facts_of(codec, 320, 16, "fp16") | {"fingerprint": recorded}
        with pytest.raises(
            ValueError, match="ignored its latents_mean and latents_std.*encode the videos again"
        ) as two:
            check_facts("lat", facts, DataConfig(), built(normalised))
        assert facts_begun(facts, facts_of(codec, 320, 16, "fp16"), built(normalised)) != facts
        assert "\n" not in str(one.value) + str(two.value)
    with pytest.raises(RunError) as other:
        resume("0" * 64, built(normalised))
    assert "ignored" not in str(other.value)
    resume(codec.fingerprint, built(normalised))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"latents_std": STD[:3]}, "latents_std 3 values; expected 4 values"),
        ({"latents_mean": [*MEAN, 1.0]}, "latents_mean 5 values; expected 4 values"),
        ({"latents_std": None}, "latents_std None; expected 4 values, one a latent channel, in both of"),
        ({"latents_mean": None}, "latents_mean None; expected"),
        ({"latents_mean": "0.5"}, "latents_mean '0.5'; expected"),
        ({"latents_std": [1, 0, 1, 1]}, r"latents_std\[1\] 0; expected a number above 0"),
        ({"latents_std": [1, 1, -0.5, 1]}, r"latents_std\[2\] -0.5; expected a number above 0"),
        ({"latents_mean": [float("nan"), 0, 0, 0]}, r"latents_mean\[0\] nan; expected a finite number"),
        ({"latents_mean": [0, "0", 0, 0]}, r"latents_mean\[1\] '0'; expected a finite number"),
        ({"shift_factor": 0.5}, "shift_factor 0.5 beside latents_mean and latents_std"),
        ({"scaling_factor": 0}, "scaling_factor 0; expected a number above 0"),
        ({"scaling_factor": None}, "scaling_factor None; expected a number above 0"),
        ({"shift_factor": True}, "shift_factor True; expected a finite number"),
    ],
    ids=str,
)
def test_scalings_that_cannot_be_are_one_line(normalised: Path, values: dict[str, Any], reason: str) -> None:
    from megatron_videogpt.hub.common.frames_videogpt import load_vae

    change(normalised, **values)
    with pytest.raises(ValueError, match=f"^codec.path={normalised}: config.json has {reason}") as ours:
        built(normalised)
    with pytest.raises(ValueError, match=f"^{normalised}: config.json has {reason}") as exported:
        load_vae(normalised, None)
    assert "\n" not in str(ours.value) + str(exported.value)


def test_wan_needs_positive_deviations(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
    AutoencoderKLWan(**sizes, latents_mean=MEAN, latents_std=STD).save_pretrained(tmp_path)
    codec = build_codec(replace(config_of(tmp_path), name="autoencoder_kl_wan"))
    assert codec.fingerprint == earlier(tmp_path, [WEIGHTS]) and codec.identity.earlier == ()
    for values, reason in (
        ({"latents_std": [1, 1, 0, 1]}, r"latents_std\[2\] 0; expected a number above 0"),
        ({"latents_std": [1, 1]}, "latents_std 2 values"),
        ({"latents_std": STD, "latents_mean": None}, "latents_mean None; expected 4 values"),
    ):
        change(tmp_path, **values)
        with pytest.raises(ValueError, match=reason):
            build_codec(replace(config_of(tmp_path), name="autoencoder_kl_wan"))
