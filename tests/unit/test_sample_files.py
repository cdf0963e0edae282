"""Files that a continuation becomes, and what is held in memory meanwhile."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from megatron_videogpt.data.decode import probe
from megatron_videogpt.sample import cli
from megatron_videogpt.sample.generate import Clip
from megatron_videogpt.sample.output import Output
from megatron_videogpt.sample.prompts import Prompt
from tests.fakes import Joining, fake_model, plain

from .test_sample_output import prompt, ramp, sample_command


@pytest.fixture
def model(monkeypatch):
    """The command with a model that predicts no motion."""
    monkeypatch.setattr(cli, "load", lambda source, step, average, *encoder: fake_model())


def test_a_codec_that_joins_frames_is_written_after_the_last_clip(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "load", lambda source, step, average, *encoder: fake_model(codec=Joining()))
    Image.new("RGB", (32, 32), (127, 127, 127)).save(tmp_path / "grey.png")
    assert sample_command(tmp_path / "grey.png", "--output", tmp_path / "x.mp4", "--formats", "mp4,png,latents") == 0
    report = json.loads((tmp_path / "x.json").read_text())
    assert (report["given_frames"], report["generated_frames"], report["settings"]["history"]) == (1, 20, 1)
    assert probe(tmp_path / "x.mp4").frames == 21
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.get_slice("generated").get_shape() == [5, 192, 4, 4]


def test_a_gif_shows_given_and_new_frames_at_their_rate(model, tmp_path):
    assert (
        sample_command(
            ramp(tmp_path / "in.mp4"),
            "--output",
            tmp_path / "x.mp4",
            "--formats",
            "gif",
            "--guidance-schedule",
            "0.5:1",
        )
        == 0
    )
    with Image.open(tmp_path / "x.gif") as gif, Image.open(tmp_path / "x.gif") as last:
        # Four given frames, as sample.history says, and five new ones without motion beside a truth that moves.
        assert gif.info["loop"] == 0 and gif.info["duration"] == 80 and gif.n_frames == 9
        last.seek(8)
        first, end = (np.asarray(image.convert("RGB")).astype(int) for image in (gif, last))
    middle = first.shape[0] // 2 + 12
    assert (
        abs(first[middle, 100, 0] - 16) <= 4
        and abs(end[middle, 100, 0] - 144) <= 4
        and abs(end[middle, -100, 0] - 64) <= 4
    )
    assert not (tmp_path / "x.mp4").exists() and not (tmp_path / "x.png").exists()


def latents_alive():
    """Storage of all latents of 4 x 4 cells, in frames."""
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor and item.shape[1:] == (192, 4, 4)]
    return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in tensors}.values()) // (
        192 * 16 * 4
    )


def test_a_long_rollout_holds_a_window_of_latents_and_no_frames(monkeypatch, tmp_path):
    held = []

    def still(histories, zs, t, conditions):
        held.append(latents_alive())
        return [past[-1:].expand_as(z).clone() for past, z in zip(histories, zs)]

    peaks = {}
    monkeypatch.setattr(cli, "load", lambda source, step, average, *encoder: fake_model(still, window=12, steps=1))
    Image.new("RGB", (32, 32), (0, 90, 200)).save(tmp_path / "in.png")
    # The first run also loads what lasts.
    for clips, name in ((1, "first"), (5, "short"), (25, "long")):
        tracemalloc.start()
        assert (
            sample_command(
                tmp_path / "in.png", "--clips", f"8x{clips}", "--output", tmp_path / f"{name}.mp4", "--formats", "mp4"
            )
            == 0
        )
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert probe(tmp_path / "long.mp4").frames == 201
    # 160 more pictures of 264 x 288 pixels, as the video shows them, would be 36 MB.
    assert peaks["long"] < peaks["short"] + 2.5e5
    # The window of 12 frames, the clip of 8 and its noise, and what the last clip leaves.
    assert len(held) == 31 and max(held[6:]) == max(held[:6]) <= 40


def test_latents_and_frames_are_not_kept_unless_they_are_needed(tmp_path):
    for formats, keep, expected in ((("mp4",), False, (0, 0)), (("latents",), False, (3, 0)), (("mp4",), True, (0, 3))):
        output = Output(tmp_path / "x", formats, prompt(0), torch.zeros(3, 192, 2, 3), 3, keep)
        latents, frames = [], []
        with output:
            for _ in range(3):
                clip = Clip(torch.zeros(1, 192, 2, 3), plain(0, 1))
                latents.append(weakref.ref(clip.latents)), frames.append(weakref.ref(clip.frames))
                output.append(clip)
                del clip
            assert tuple(sum(reference() is not None for reference in kind) for kind in (latents, frames)) == expected


def test_the_sheet_of_a_long_video_shows_every_second_frame(tmp_path, monkeypatch):
    from megatron_videogpt.sample import output as module

    seen = {}
    monkeypatch.setattr(module, "SHEET_FRAMES", 4)
    monkeypatch.setattr(
        module,
        "contact_sheet",
        lambda *values: seen.update(zip(("condition", "new", "truth", "path", "every"), values)),
    )
    known = Prompt("p", prompt(0).condition, np.concatenate([plain(100 + n, 1) for n in range(4)]), 12.0)
    output = Output(tmp_path / "x", ("png",), known, torch.zeros(3, 192, 2, 3), 5)
    with output:
        for start in (200, 202, 204):
            output.append(
                Clip(torch.zeros(2, 192, 2, 3), np.concatenate([plain(start + n, 1) for n in range(2)])[: 205 - start])
            )
        output.finish({})
    # Eight frames, 0 to 7, of which the first three are given: 0, 2, 4 and 6 are shown.
    assert [[int(frame.mean()) for frame in seen[part]] for part in ("condition", "new", "truth")] == [
        [0, 20],
        [201, 203],
        [101, 103],
    ]
    assert seen["every"] == 2


def test_a_failure_leaves_no_half_written_video(tmp_path):
    with (
        pytest.raises(RuntimeError),
        Output(tmp_path / "x", ("mp4",), prompt(0), torch.zeros(3, 192, 2, 3), 3) as output,
    ):
        output.append(Clip(torch.zeros(1, 192, 2, 3), plain(0, 1)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
