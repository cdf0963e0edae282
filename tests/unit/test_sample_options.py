"""No option is ignored: another value of any option of `[sample]` or of the sample command changes what comes out."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from megatron_videogpt.__main__ import main
from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.config.sections import not_sampled_with
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.sample import cli, options
from tests.fakes import fake_model, plain

CACHE = {"cache": False, "cache_dtype": "bf16", "cache_offload": True}
CHANGED = {
    "history": 2,
    "clips": (2, 3),
    "window": 5,
    "steps": 3,
    "guidance": 2.0,
    "guidance_schedule": ((0.5, 3.0),),
    "history_noise": 0.5,
    "time_shift": 3.0,
    **CACHE,
}
"""Another value for every option of `[sample]`."""

ARGUMENTS = {
    "video": ("--video", "{folder}/c.png"),
    "scene": ("--scene", "fall/3"),
    "formats": ("--formats", "latents,png"),
    "compare": ("--compare",),
    "batch": ("--batch", "1"),
    "step": ("--step", "3"),
    "weights": ("--weights", "average"),
    "platform": ("--platform", "cpu"),
    "clips": ("--clips", "2,3"),
    "history": ("--history", "2"),
    "interval": ("--interval", "1"),
    "window": ("--window", "5"),
    "steps": ("--steps", "3"),
    "guidance": ("--guidance", "2"),
    "guidance_schedule": ("--guidance-schedule", "0.5:3"),
    "history_noise": ("--history-noise", "0.5"),
    "time_shift": ("--time-shift", "3"),
    "seed": ("--seed", "1"),
    "cache": ("--no-cache",),
    "cache_dtype": ("--cache-dtype", "bf16"),
    "cache_offload": ("--cache-offload",),
}
"""Another value for every option of the command but its inputs, its output and the model."""


def mixed(histories, zs, t):
    """Predicts something that depends on the noise, on every frame of the history and on the noise level."""
    return [0.5 * z + t * past.sum(0, keepdim=True) for past, z in zip(histories, zs)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short videos and a picture."""
    path = tmp_path_factory.mktemp("inputs")
    for number, name in enumerate(("a.mp4", "b.mp4")):
        write_video(path / name, np.concatenate([plain(10 * n + 40 * number, 1, 32, 32) for n in range(20)]), 24)
    Image.new("RGB", (32, 32), (0, 0, 200)).save(path / "c.png")
    return path


def outcome(folder: Path, out: Path, patch: pytest.MonkeyPatch, sample: dict, *arguments: str) -> dict:
    """All that a run of the command shows: latents, files, and what its model was asked for."""
    seen: dict = {"load": [], "cache": [], "rows": []}
    fake = fake_model(
        lambda histories, zs, t, conditions: seen["rows"].append(len(zs)) or mixed(histories, zs, t), **sample
    )

    def sampler(settings: SampleConfig):
        seen["cache"] = [getattr(settings, name) for name in CACHE]
        return fake.sampler(settings)

    def load(source, step, average, encoder, texts, platform):
        seen["load"] = [source, step, average, platform]
        return replace(fake, sampler=sampler)

    patch.setattr(cli, "load", load)
    command = [
        "sample",
        str(folder / "a.mp4"),
        str(folder / "b.mp4"),
        "--checkpoint",
        "run",
        "--output",
        str(out),
        "--formats",
        "latents",
    ]
    assert main([*command, *(part.format(folder=folder) for part in arguments)]) == 0
    seen["files"] = sorted(path.name for path in out.iterdir())
    seen["latents"] = {path.name: load_file(path) for path in sorted(out.glob("*.safetensors"))}
    return seen


def same(one: dict, other: dict) -> bool:
    facts = all(one[name] == other[name] for name in ("load", "cache", "rows", "files"))
    pairs = [(one["latents"][name], other["latents"][name]) for name in one["latents"]] if facts else []
    return facts and all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


def test_another_value_of_any_option_changes_what_comes_out(folder, tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    given = {
        "help",
        "inputs",
        "output",
        "checkpoint",
        "labels",
        "texts",
        "text_encoder",
    }  # test_sample_conditions.py has the last three
    others = not_sampled_with("next_clip_diffusion")  # test_block_sampler.py has these
    assert set(ARGUMENTS) == {action.dest for action in parser._actions} - given - others, (
        "an option of the command has no other value here"
    )
    assert set(options.SETTINGS) == {field.name for field in fields(SampleConfig)}
    assert set(CHANGED) == set(options.SETTINGS) - others, "an option of [sample] has no other value here"
    normal = outcome(folder, tmp_path / "normal", monkeypatch, {})
    assert same(normal, outcome(folder, tmp_path / "again", monkeypatch, {}))
    ignored = [
        f"sample.{name}"
        for name, value in CHANGED.items()
        if same(normal, outcome(folder, tmp_path / f"set_{name}", monkeypatch, {name: value}))
    ]
    ignored += [
        name
        for name, words in ARGUMENTS.items()
        if same(normal, outcome(folder, tmp_path / f"told_{name}", monkeypatch, {}, *words))
    ]
    assert not ignored


def test_options_that_others_leave_without_effect_are_refused(folder, tmp_path, monkeypatch, capsys):
    for sample, words, message in (
        (
            {"guidance_schedule": ((0.0, 5.0),)},
            ("--guidance", "2"),
            "--guidance 2: the schedule 0:5 holds from 0 on and overrides it",
        ),
        ({}, ("--no-cache", "--cache-dtype", "bf16"), "--no-cache: leaves no cache for --cache-dtype"),
        ({}, ("--no-cache", "--cache-offload"), "--no-cache: leaves no cache for"),
        ({}, ("--top-k", "5"), "--top-k: a model of objective.name = next_clip_diffusion makes no use of it"),
        ({"temperature": 0.5}, (), "sample.temperature = 0.5: must be left out"),
    ):
        with pytest.raises(AssertionError):
            outcome(folder, tmp_path / "out", monkeypatch, sample, *words)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and message in lines[0], lines
    plain_run = outcome(folder, tmp_path / "plain", monkeypatch, {"guidance": 2.0})
    words = ("--guidance", "2", "--guidance-schedule", "none")
    assert same(
        plain_run, outcome(folder, tmp_path / "none", monkeypatch, {"guidance_schedule": ((0.0, 5.0),)}, *words)
    )
