"""Pictures of predictions and pixel errors, with a lossless codec and predictions that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.data.video.pictures import to_model_range, to_pixels
from megatron_videogpt.hub.common.sampling_videogpt import Recompute
from megatron_videogpt.objective.next_clip.sampler import ClipSampler
from megatron_videogpt.sample.evaluate import decode_continuation, pixel_frames, predict, psnr, squared_errors
from megatron_videogpt.sample.render import GAP, GENERATED, GIVEN, TRUTH, contact_sheet, outline, prediction_video
from tests.fakes import Joining, Unshuffle, plain, repeat_last


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
    assert video.shape[2] in (factor * width + 8, factor * width + 9) and video.shape[1] in (
        factor * height + 32,
        factor * height + 33,
    )
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


@pytest.mark.parametrize(
    ("height", "width", "tile"), [(64, 64, (128, 128)), (128, 160, (128, 160)), (360, 640, (108, 192))]
)
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


def test_a_thinned_contact_sheet_counts_the_frames_of_the_video(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **how: drawn.append(text))
    contact_sheet(plain(50, 2), plain(200, 3), plain(120, 1), tmp_path / "sheet.png", every=4)
    assert [text for text in drawn if text.isdecimal()] == ["0", "4", "8", "12", "16"]


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
    return Sample(
        key=key,
        name=str(key),
        mean=Unshuffle().encode(to_model_range(frames))[0],
        logvar=None,
        clips=(3, 3),
        pixels=frames,
    )


def test_predicting_that_nothing_moves_is_as_good_as_repeating():
    samples, codec = [sample(1, 0), sample(2, 40), sample(3, 90)], Unshuffle()
    settings = SampleConfig(clips=(9,), window=99, steps=4, guidance=1.0)
    latents = predict(ClipSampler(Recompute(repeat_last)), samples, 2, 3, settings, seed=0, batch=2)
    for one, predicted in zip(samples, latents):
        video = decode_continuation(codec, one.mean[:2], predicted)
        model, repeat = squared_errors(video, one.pixels, 2)
        # Frames 2, 3, 4 differ from frame 1 by 10, 20, 30 grey levels.
        assert model == pytest.approx((100 + 400 + 900) / 3 / 255**2, rel=1e-4) and repeat == pytest.approx(
            model, rel=1e-4
        )


def test_a_prediction_does_not_depend_on_the_batch():
    def noisy(histories, zs, t, conditions):
        return [0.5 * z + past[-1:] for past, z in zip(histories, zs)]

    samples = [sample(key, 10 * key) for key in range(5)]
    settings = SampleConfig(steps=3, guidance=1.0)
    one, many = (
        predict(ClipSampler(Recompute(noisy)), samples, 2, 2, settings, seed=5, batch=batch) for batch in (1, 3)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, many))


def test_a_codec_that_joins_frames_decodes_the_history_with_the_new_frames():
    codec = Joining()
    latents = torch.stack([torch.full((192, 2, 2), value) for value in (0.0, 0.1, 0.2, 0.3)])
    assert [pixel_frames(codec, n) for n in (0, 1, 2, 4)] == [0, 1, 5, 13]
    video = decode_continuation(codec, latents[:2], latents[2:])
    assert video.shape == (8, 3, 16, 16) and torch.allclose(video[:, 0, 0, 0], torch.tensor([0.2] * 4 + [0.3] * 4))


def test_pixels_survive_the_lossless_codec():
    """The stand-in must not hide errors of its own."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(Unshuffle().decode(Unshuffle().encode(to_model_range(frames))[0])), frames)
