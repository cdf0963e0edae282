"""The sample command as a user starts it: a trained model, real clips, one process and two."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.sample.generate import generate, load
from megatron_videogpt.sample.prompts import Source, read_prompt
from tests.clips import TALL, TRAILER
from tests.parallel.launch import REPOSITORY, cli, torchrun
from tests.parallel.launch import run as run_command

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
CLIPS = (TRAILER, TALL)
SETTINGS = (
    "--clips",
    "2,2,1",
    "--window",
    "5",
    "--steps",
    "3",
    "--guidance",
    "2.0",
    "--guidance-schedule",
    "0.5:1.5",
    "--history-noise",
    "0.1",
    "--seed",
    "4",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model after 12 steps, with a moving average of its weights."""
    folder = tmp_path_factory.mktemp("sampling") / "run"
    result = cli(
        "train", CONFIG, f"train.output={folder}", "train.steps=12", "checkpoint.every=0", "optimizer.ema_decay=0.5"
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def inputs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two videos of different sizes, a picture and a scene."""
    picture = tmp_path_factory.mktemp("pictures") / "bird.png"
    Image.fromarray(read_frames(videos / CLIPS[1], [0])[0]).save(picture)
    return [*(str(videos / name) for name in CLIPS), str(picture), "--scene", "bounce/3"]


@pytest.fixture(scope="module")
def sampled(run: Path, inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made of the inputs, all in one row."""
    out = tmp_path_factory.mktemp("alone") / "out"
    formats = ("--formats", "mp4,gif,png,latents")
    result = cli("sample", *inputs, "--checkpoint", str(run), "--output", str(out), *formats, *SETTINGS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("generated") == 4 and "20.0/20 frames" in result.stderr
    return out


def latents(folder: Path, name: str) -> torch.Tensor:
    return load_file(folder / f"{name}.safetensors")["generated"]


NAMES = ("bbb_trailer_cuts", "tall", "bird", "bounce_3")


def assert_same(ours: Path, other: Path) -> None:
    for name in NAMES:
        first, second = latents(ours, name), latents(other, name)
        assert float((first - second).abs().max()) <= 1e-4 * float(first.abs().max()), name
        assert float(first.std()) > 0.05


def test_real_clips_a_picture_and_a_scene(sampled: Path) -> None:
    for name, given, shape in zip(NAMES, (2, 2, 1, 2), ((16, 32), (32, 16), (32, 16), (32, 32))):
        report = json.loads((sampled / f"{name}.json").read_text())
        assert (report["given_frames"], report["generated_frames"], report["settings"]["history_noise"]) == (
            given,
            5,
            0.1,
        )
        assert latents(sampled, name).shape == (5, 16, shape[0] // 8, shape[1] // 8), name
        assert probe(sampled / f"{name}.mp4").frames == given + 5
        with Image.open(sampled / f"{name}.gif") as gif:
            assert gif.n_frames > 3
        assert ("ratio" in report["errors"]) == (name != "bird")
    # Two prompts that begin with the same noise are not continued alike.
    assert not np.array_equal(latents(sampled, NAMES[1]), latents(sampled, NAMES[2]))


def test_two_processes_that_share_the_model_and_another_batch_give_the_same(
    run: Path, inputs: list[str], sampled: Path, tmp_path: Path
) -> None:
    common = ("-m", "megatron_videogpt", "sample", "--checkpoint", str(run), "--formats", "latents", *SETTINGS)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    result = torchrun(2, *common, str(broken), *inputs, "--output", str(tmp_path / "out"), "--batch", "3", check=False)
    assert (
        result.stderr.count("broken.mp4: not a readable video") == 1
        and result.stderr.count("4 of 5 inputs continued, 1 skipped") == 1
    ), result.stderr
    assert result.returncode == 1 and result.stdout.count("bounce/3: 2 frames given, 5 generated") == 1
    assert json.loads((tmp_path / "out" / "bird.json").read_text())["processes"] == 2
    assert_same(sampled, tmp_path / "out")


@pytest.mark.long
def test_three_processes_cannot_share_four_heads(run: Path, tmp_path: Path) -> None:
    result = torchrun(
        3,
        "-m",
        "megatron_videogpt",
        "sample",
        "--checkpoint",
        str(run),
        "--scene",
        "fall/1",
        "--output",
        str(tmp_path),
        check=False,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert result.returncode and len(lines) == 1, result.stderr
    assert (
        "3 processes share the model" in lines[0]
        and "parallel.tensor = 3: must divide model.num_attention_heads = 4" in lines[0]
    )


@pytest.mark.usefixtures("processes")
def test_a_hugging_face_folder_is_the_same_model(run: Path, inputs: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    result = run_command([sys.executable, "tools/convert_checkpoint.py", "to-hf", str(run), "--output", str(folder)])
    assert result.returncode == 0, result.stderr
    ours, theirs = load(run), load(folder)
    assert theirs.config.sample == ours.config.sample and theirs.codec.fingerprint == ours.codec.fingerprint
    prompt = read_prompt(Source("bbb", Path(inputs[0])), ours.config, ours.codec, None, 2)
    (first,), (second,) = (list(generate(model, [prompt], ours.config.sample, 0)) for model in (ours, theirs))
    assert torch.equal(first.latents, second.latents) and float(first.latents.std()) > 0.05
    for wrong in ({"step": 3}, {"average": True}):
        with pytest.raises(ValueError, match="holds one set of weights"):
            load(folder, **wrong)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match="model.safetensors") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("processes")
def test_alone_and_without_cache_it_is_the_same_and_the_average_is_another_model(
    run: Path, inputs: list[str], sampled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(run)
    settings = replace(
        model.config.sample,
        clips=(2, 2, 1),
        window=5,
        steps=3,
        guidance=2.0,
        guidance_schedule=((0.5, 1.5),),
        history_noise=0.1,
        cache=False,
    )
    config = replace(model.config, sample=settings)
    for name, file in zip(NAMES, inputs[:3]):
        prompt = read_prompt(Source(name, Path(file)), config, model.codec, None, 2)
        (alone,) = generate(model, [prompt], settings, 4)
        expected = latents(sampled, name)
        assert float((alone.latents - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name
        (other,) = generate(load(run, average=True), [prompt], settings, 4)
        assert float((other.latents - expected).abs().max()) > 1e-3
    for arguments, message in [((run, 7), "no complete checkpoint of step 7"), ((run / "gone",), "no such folder")]:
        with pytest.raises(ValueError, match=message):
            load(*arguments)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        ValueError,
        match="3 processes share the model .*: parallel.tensor = 3: must divide model.num_attention_heads = 4",
    ):
        load(run)
