"""Pictures of predictions, pixel errors and the sample command, with a lossless codec and predictions that are known beforehand."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from megatron_videogpt.__main__ import main
from megatron_videogpt.config.schema import Config, DataConfig, PhysicsConfig, SampleConfig
from megatron_videogpt.data.clips import Sample
from megatron_videogpt.data.decode import read_frames, to_model_range, to_pixels, write_video
from megatron_videogpt.data.physics import render_scene
from megatron_videogpt.sample import cli
from megatron_videogpt.sample.evaluate import decode_continuation, pixel_frames, predict, psnr, squared_errors
from megatron_videogpt.sample.render import GAP, GENERATED, GIVEN, TRUTH, contact_sheet, outline, prediction_video


class Unshuffle:
    """A lossless codec: pixels regrouped, 8x8 to a latent cell."""

    name, channels, spatial_stride, temporal_stride, fingerprint = "unshuffle", 192, 8, 1, "0"

    def encode(self, video):
        return F.pixel_unshuffle(video, 8), None

    def decode(self, latents):
        return F.pixel_shuffle(latents, 8)

    def to(self, device, dtype=None):
        return self


class Joining(Unshuffle):
    """As `Unshuffle`, with every 4 frames after the first joined; it decodes only from the beginning, as a causal video codec does."""

    temporal_stride = 4

    def decode(self, latents):
        frames = F.pixel_shuffle(latents, 8)
        assert float(frames[0].mean()) == 0.0, "must start with the history's first frame"
        return torch.cat([frames[:1], frames[1:].repeat_interleave(4, 0)])


def repeat_last(histories, zs, t):
    """Predicts that nothing moves."""
    return [past[-1:].expand_as(z) for past, z in zip(histories, zs)]


def plain(value, frames, height=16, width=24):
    return np.full((frames, height, width, 3), value, np.uint8)


def test_an_outline_surrounds_the_picture_and_covers_nothing():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    framed = outline(frames, (9, 8, 7), 2)
    assert np.array_equal(framed[:, 2:-2, 2:-2], frames)
    border = np.ones(framed.shape[1:3], bool)
    border[2:-2, 2:-2] = False
    assert framed.shape == (2, 8, 9, 3) and (framed[:, border] == (9, 8, 7)).all()


@pytest.mark.parametrize(("height", "width", "factor"), [(64, 64, 4), (16, 24, 11), (208, 320, 1), (201, 301, 1)])
def test_video_enlarges_small_frames_and_marks_given_and_predicted(height, width, factor):
    video = prediction_video(plain(50, 2, height, width), plain(200, 3, height, width), None)
    assert video.shape[0] == 5 and video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    assert video.shape[2] in (factor * width + 8, factor * width + 9) and video.shape[1] in (factor * height + 32, factor * height + 33)
    for frame, colour, value in zip(video, [GIVEN] * 2 + [GENERATED] * 3, [50] * 2 + [200] * 3):
        assert tuple(frame[24, 0]) == colour and tuple(frame[24 + factor * height + 7, factor * width + 7]) == colour
        assert (frame[28 : 28 + factor * height, 4 : 4 + factor * width] == value).all()


def test_video_shows_truth_at_the_left_and_nothing_where_it_ends():
    video = prediction_video(plain(50, 2, 64, 64), plain(200, 3, 64, 64), plain(120, 2, 64, 64))
    right = 264 + GAP
    assert video.shape == (5, 288, 264 + GAP + 264, 3)
    assert [tuple(frame[30, 1]) for frame in video] == [GIVEN, GIVEN, TRUTH, TRUTH, (250, 250, 250)]
    assert [tuple(frame[30, right + 1]) for frame in video] == [GIVEN, GIVEN, GENERATED, GENERATED, GENERATED]
    assert [frame[100, 100, 0] for frame in video] == [50, 50, 120, 120, 250]
    assert [frame[100, right + 100, 0] for frame in video] == [50, 50, 200, 200, 200]


def tinted(value, frames, height, width):
    """Frames of one colour that nothing else in a sheet has (text is grey)."""
    picture = plain(value, frames, height, width)
    picture[..., 1:] = (255, 0)
    return picture


def colours(path, *values):
    """How many pixels of a PNG have exactly each tint."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return [int((pixels == (value, 255, 0)).all(axis=1).sum()) for value in values]


@pytest.mark.parametrize(("height", "width", "tile"), [(64, 64, (128, 128)), (128, 160, (128, 160)), (360, 640, (108, 192))])
def test_contact_sheet_shows_every_frame_once_a_row_at_a_legible_size(tmp_path, height, width, tile):
    path, area = tmp_path / "sheet.png", tile[0] * tile[1]
    contact_sheet(tinted(53, 3, height, width), tinted(201, 14, height, width), tinted(121, 4, height, width), path)
    assert colours(path, 53, 201, 121) == [2 * 3 * area, 14 * area, 4 * area]
    contact_sheet(tinted(53, 3, height, width), tinted(201, 14, height, width), None, path)
    assert colours(path, 53, 201, 121) == [3 * area, 14 * area, 0]
    assert Image.open(path).width <= 1900


def test_contact_sheet_goes_from_left_to_right(tmp_path):
    frames = np.concatenate([tinted(20 * n, 1, 128, 128) for n in range(1, 9)])
    contact_sheet(frames[:4], frames[4:], None, tmp_path / "sheet.png")
    middle = np.asarray(Image.open(tmp_path / "sheet.png"))[34 + 16 + 67]
    order = middle[(middle[:, 1:] == (255, 0)).all(axis=1), 0].astype(int).tolist()
    assert order == sorted(order) and sorted(set(order)) == list(range(20, 161, 20))


def test_errors_of_known_differences():
    pixels = np.concatenate([plain(0, 2), plain(51, 1), plain(102, 1)])  # 0, 0.2, 0.4 of full white
    guess = to_model_range(np.concatenate([plain(51, 1), plain(51, 2)]))
    model, repeat = squared_errors(guess, pixels, 2)
    assert model == pytest.approx((0.0 + 0.04) / 2) and repeat == pytest.approx((0.04 + 0.16) / 2)
    beyond, _ = squared_errors(torch.full((1, 3, 16, 24), 7.0), plain(255, 2), 1)
    assert beyond == 0.0, "predictions are clamped"
    assert psnr(0.01) == pytest.approx(20.0) and psnr(0.0) == math.inf


def sample(key, start):
    frames = np.concatenate([plain(start + 10 * n, 1, 16, 16) for n in range(6)])
    return Sample(key=key, name=str(key), mean=Unshuffle().encode(to_model_range(frames))[0], logvar=None, clips=(3, 3), pixels=frames)


def test_predicting_that_nothing_moves_is_as_good_as_repeating():
    samples, codec = [sample(1, 0), sample(2, 40), sample(3, 90)], Unshuffle()
    settings = SampleConfig(clips=(9,), window=99, steps=4, guidance=1.0)
    latents = predict(repeat_last, samples, 2, 3, settings, seed=0, batch=2)
    for one, predicted in zip(samples, latents):
        video = decode_continuation(codec, one.mean[:2], predicted)
        model, repeat = squared_errors(video, one.pixels, 2)
        # Frames 2, 3, 4 differ from frame 1 by 10, 20, 30 grey levels.
        assert model == pytest.approx((100 + 400 + 900) / 3 / 255**2, rel=1e-4) and repeat == pytest.approx(model, rel=1e-4)


def test_a_prediction_does_not_depend_on_the_batch():
    def noisy(histories, zs, t):
        return [0.5 * z + past[-1:] for past, z in zip(histories, zs)]

    samples = [sample(key, 10 * key) for key in range(5)]
    settings = SampleConfig(steps=3, guidance=1.0)
    one, many = (predict(noisy, samples, 2, 2, settings, seed=5, batch=batch) for batch in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one, many))


def test_a_codec_that_joins_frames_decodes_the_history_with_the_new_frames():
    codec = Joining()
    latents = torch.stack([torch.full((192, 2, 2), value) for value in (0.0, 0.1, 0.2, 0.3)])
    assert [pixel_frames(codec, n) for n in (0, 1, 2, 4)] == [0, 1, 5, 13]
    video = decode_continuation(codec, latents[:2], latents[2:])
    assert video.shape == (8, 3, 16, 16) and torch.allclose(video[:, 0, 0, 0], torch.tensor([0.2] * 4 + [0.3] * 4))


SETTINGS = SampleConfig(clips=(3, 2), window=9, steps=2, guidance=1.0)


@pytest.mark.parametrize(
    ("codec", "frames", "history", "expected"),
    [
        (Unshuffle(), 12, None, (1, 7, 12)),  # window 9 - clip 3 leaves room for 6
        (Unshuffle(), 8, None, (0, 3, 8)),
        (Unshuffle(), 5, None, (0, 5, 5)),  # not more frames than are asked for: continue what is there
        (Unshuffle(), 30, 4, (0, 4, 9)),
        (Unshuffle(), 6, 4, (0, 4, 6)),  # truth ends early
        (Unshuffle(), 4, 4, (0, 4, 4)),
        (Joining(), 26, None, (1, 6, 26)),  # 7 latent frames: 2 given (5 frames), 5 new (20 frames)
        (Joining(), 13, 3, (0, 9, 13)),
    ],
)
def test_which_frames_are_given_and_which_are_truth(codec, frames, history, expected):
    assert cli.plan(frames, history, SETTINGS, codec) == expected


CONFIG = Config(
    data=DataConfig(longest_side=32, frame_interval=(2, 2), physics=PhysicsConfig(size=32)),
    sample=SampleConfig(history=4, clips=(3, 2), window=12, steps=2, guidance=1.0),
)


@pytest.fixture
def model(monkeypatch):
    """The command with a model that predicts no motion and a lossless codec."""
    inference = types.ModuleType("megatron_videogpt.train.inference")
    inference.load_denoiser = lambda folder, step=None, average=False: (repeat_last, CONFIG)
    monkeypatch.setitem(sys.modules, "megatron_videogpt.train.inference", inference)
    monkeypatch.setattr(cli, "build_codec", lambda config: Unshuffle())
    monkeypatch.setattr(cli, "activate", lambda name: types.SimpleNamespace(device=torch.device("cpu")))


def sample_command(*arguments):
    return main(["sample", "--checkpoint", "run", *map(str, arguments)])


def test_command_continues_a_scene(model, tmp_path, capsys):
    output = tmp_path / "new" / "out.mp4"
    assert sample_command("--scene", "fall/7", "--output", output, "--history-noise", "0.0") == 0
    frames = render_scene(PhysicsConfig(size=32, scenes=("fall",)), 7, 9, 2)
    expected = float(np.square((frames[4:].astype(float) - frames[3]) / 255).mean())
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["settings"]["clips"] == [3, 2] and report["settings"]["interval"] == 2 and report["settings"]["history"] == 4
    assert report["errors"]["mse_model"] == pytest.approx(expected, rel=1e-4) and report["errors"]["ratio"] == pytest.approx(1, rel=1e-4)
    assert len(read_frames(output, range(9))) == 9
    assert output.with_suffix(".png").is_file()
    text = capsys.readouterr().out
    assert "4 frames given, 5 generated" in text and "ratio 1.000" in text


def test_command_continues_a_video_and_compares_with_its_own_end(model, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "write", lambda output, material, predicted, report: seen.update(material=material, predicted=predicted, report=report))
    video = tmp_path / "in.mp4"
    write_video(video, np.concatenate([plain(8 * n, 1, 64, 64) for n in range(20)]), 24)
    assert sample_command("--video", video, "--output", tmp_path / "out.mp4") == 0
    shown = [int(frame.mean() + 0.5) for part in (seen["material"].condition, seen["material"].truth) for frame in part]
    # Every second frame of 20: ten, five given and five true; H.264 is not exact.
    assert len(seen["material"].condition) == 5 and np.abs(np.array(shown) - 16 * np.arange(10)).max() <= 3
    assert seen["material"].condition.shape[1:3] == (32, 32) and seen["material"].fps == pytest.approx(12)
    assert np.array_equal(seen["predicted"], np.repeat(seen["material"].condition[-1:], 5, 0))


def test_command_without_truth_says_so(model, tmp_path, capsys):
    video = tmp_path / "in.mp4"
    write_video(video, plain(90, 4, 32, 32), 24)
    assert sample_command("--video", video, "--output", tmp_path / "out.mp4", "--interval", 1, "--history", 4) == 0
    assert json.loads((tmp_path / "out.json").read_text())["errors"] == {}
    assert "no ground truth" in capsys.readouterr().out


def test_command_reports_the_mistakes_of_a_user_in_one_line_each(model, tmp_path, capsys):
    broken = tmp_path / "text.mp4"
    broken.write_text("not a video")
    scene = ("--scene", "fall/1", "--output", tmp_path / "out.mp4")
    for arguments, message in [
        (("--video", tmp_path / "none.mp4", "--output", "o.mp4"), "none.mp4: No such file"),
        (("--video", broken, "--output", "o.mp4"), "text.mp4: not a readable video"),
        (("--scene", "fall/1", "--output", "o.avi"), "--output o.avi: must end in .mp4"),
        ((*scene, "--steps", 0), "sample.steps = 0: must be at least 1"),
        ((*scene, "--window", 2), "sample.window = 2: must hold the longest clip"),
        ((*scene, "--window", 3), "leaves no room for history"),
        ((*scene, "--interval", 0), "--interval 0: must be at least 1"),
        ((*scene, "--history", 0), "--history 0: must be at least 1"),
    ]:
        assert sample_command(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert sample_command(*scene, "--steps", 0, "--interval", 0) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2, "all problems at once"
    video = tmp_path / "short.mp4"
    write_video(video, plain(90, 4, 32, 32), 24)
    assert sample_command("--video", video, "--output", "o.mp4", "--history", 3) == 2
    assert "--history 3 needs 3 frames, the video has 2" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--clips", "8,x"), ("--scene", "dance/1"), ("--scene", "fall"), ()])
def test_command_line_that_cannot_be_parsed_ends_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        sample_command("--output", "o.mp4", *arguments)
    assert ended.value.code == 2


def test_seeds_give_different_continuations(monkeypatch):
    def noisy(histories, zs, t):
        return [0.9 * z for z in zs]

    history = torch.zeros(2, 4, 2, 2)
    first, again, other = (cli.generate(noisy, history, SETTINGS, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == (5, 4, 2, 2)


def test_pixels_survive_the_lossless_codec():
    """The stand-in must not hide errors of its own."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(Unshuffle().decode(Unshuffle().encode(to_model_range(frames))[0])), frames)
