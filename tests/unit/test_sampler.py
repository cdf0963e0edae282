"""Sampler against recorded numbers (reference README, section 9) and closed forms; no model takes part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.hub.common import sampling_videogpt as sampler
from megatron_videogpt.hub.common.sampling_videogpt import Recompute, Settings, continue_videos, sigmas
from megatron_videogpt.objective.flow_sampler import sampling
from megatron_videogpt.objective.next_clip.sampler import keyed_noise
from megatron_videogpt.objective.noise import normal

LIMIT = 5e-4  # of the largest absolute value, for the sampler


def rollout(function, histories, config, noise):
    return continue_videos(Recompute(function), histories, sampling(config, any(map(len, histories))), noise)


def denoise_clips(function, histories, noises, steps, guidance, time_shift=1.0, schedule=()):
    denoiser = Recompute(function)
    denoiser.begin([None] * len(histories))
    denoiser.remember(histories, [0] * len(histories))
    settings = Settings((1,), 1, steps, guidance, schedule, time_shift=time_shift)
    return sampler.denoise_clips(denoiser, noises, settings, any(len(history) for history in histories))


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= LIMIT * expected.abs().max()


@given(steps=st.integers(1, 60), shift=st.floats(0.2, 8))
@settings(max_examples=40, deadline=None)
def test_sigmas_go_from_noise_to_data_as_the_formula_says(steps, shift):
    levels = sigmas(steps, shift)
    assert levels.dtype == torch.float32 and levels[0] == 0 and abs(float(levels[-1]) - 1) < 1e-6
    for i in range(steps + 1):
        even = i / steps
        assert abs(float(levels[i]) - even / (even + shift - shift * even)) < 1e-6


@pytest.mark.parametrize(("steps", "shift", "guidance"), [(1, 1.0, 1.0), (7, 1.0, 3.0), (50, 4.0, 1.5)])
def test_a_constant_prediction_is_reached(steps, shift, guidance):
    target, start = normal(0, "target", (2, 4, 2, 2)), normal(0, "start", (2, 4, 2, 2))
    (end,) = denoise_clips(
        lambda histories, zs, t, conditions: [target] * len(zs),
        [normal(0, "history", (3, 4, 2, 2))],
        [start],
        steps,
        guidance,
        shift,
    )
    assert torch.allclose(end, target, atol=2e-6)


def test_guidance_extrapolates_from_the_unconditional_prediction():
    """With constant predictions c and u the flow is linear, so it ends at u + s (c - u)."""
    cond, uncond, scale = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 0.5), 3.0
    history = torch.zeros(2, 1, 1, 1)
    (end,) = denoise_clips(
        lambda histories, zs, t, conditions: [cond if len(past) else uncond for past in histories],
        [history],
        [torch.ones(1, 1, 1, 1)],
        9,
        scale,
        time_shift=2.0,
    )
    assert float(end) == pytest.approx(0.5 + 3.0 * 1.5, abs=1e-5)


def test_a_video_without_history_needs_no_second_branch():
    sizes = []
    denoise_clips(
        lambda histories, zs, t, conditions: sizes.append(len(zs)) or zs,
        [torch.zeros(0, 1, 2, 2)],
        [torch.ones(2, 1, 2, 2)],
        3,
        3.0,
    )
    assert sizes == [1, 1, 1]


def last_frame_plus_one(histories, zs, t, conditions):
    """Counts on: every new frame is one more than the frame before."""
    return [
        past[-1:] + torch.arange(1.0, len(z) + 1).reshape(-1, 1, 1, 1).expand(-1, *z.shape[1:])
        for past, z in zip(histories, zs)
    ]


def counting(frames, channels=1):
    return torch.arange(float(frames)).reshape(-1, 1, 1, 1).expand(-1, channels, 2, 2).contiguous()


def test_generated_frames_become_history_and_the_window_slides():
    seen = []

    def denoiser(histories, zs, t, conditions):
        seen.append([past[:, 0, 0, 0].round().int().tolist() for past in histories])
        return last_frame_plus_one(histories, zs, t, conditions)

    config = SampleConfig(clips=(2, 3, 1), window=5, steps=1, guidance=1.0)
    results = rollout(denoiser, [counting(4), counting(2)], config, keyed_noise([1, 2], 0))
    assert seen == [[[1, 2, 3], [0, 1]], [[4, 5], [2, 3]], [[5, 6, 7, 8], [3, 4, 5, 6]]]
    for result, first in zip(results, (4, 2)):
        assert torch.allclose(result[:, 0, 0, 0], torch.arange(first, first + 6.0), atol=1e-5)


@pytest.mark.parametrize(
    ("clips", "window", "history", "message"),
    [
        (
            (2, 2),
            2,
            3,
            r"clip 1 of 2 frames leaves no room for a frame of history; use a window of 3 or more, or shorter clips",
        ),
        (
            (2, 4),
            4,
            3,
            r"clips=\[2, 4\], window=4: clip 2 of 4 frames leaves no room for a frame of history; use a "
            r"window of 5 or more",
        ),
        ((4, 4), 4, 0, r"clip 2 of 4 frames leaves no room for a frame of history"),
        ((5,), 4, 0, r"clip 1 of 5 frames leaves no room for itself; use a window of 5 or more"),
        ((4, 3), 4, 0, None),  # nothing comes before the first clip, and the second one sees a frame
        ((3, 3), 4, 9, None),
    ],
)
def test_every_clip_that_follows_something_sees_some_of_it(clips, window, history, message):
    seen, config = [], SampleConfig(clips=clips, window=window, steps=1, guidance=1.0)

    def model(histories, zs, t, conditions):
        seen.append(len(histories[0]))
        return zs

    if message is None:
        rollout(model, [counting(history)], config, keyed_noise([0], 0))
        assert seen == [min(history, window - clips[0]), window - clips[1]]
        return
    with pytest.raises(ValueError, match=message) as caught:
        rollout(model, [counting(history)], config, keyed_noise([0], 0))
    assert not seen and "\n" not in str(caught.value)


def test_history_noise_starts_with_the_second_clip_and_does_not_pile_up():
    fed = []

    def denoiser(histories, zs, t, conditions):
        fed.append(histories[0])
        return [torch.full_like(z, 5.0) for z in zs]

    noise = keyed_noise([3], 11)
    config = SampleConfig(clips=(1, 1, 1), window=100, steps=1, guidance=1.0, history_noise=0.25)
    rollout(denoiser, [counting(2)], config, noise)
    clean = torch.cat([counting(2), torch.full((2, 1, 2, 2), 5.0)])
    assert torch.equal(fed[0], clean[:2])
    assert torch.allclose(fed[1], 0.75 * clean[:3] + 0.25 * noise(0, 1, "history", (3, 1, 2, 2)), atol=1e-5)
    assert torch.allclose(fed[2], 0.75 * clean + 0.25 * noise(0, 2, "history", (4, 1, 2, 2)), atol=1e-5)


def test_a_continuation_depends_on_key_and_seed_but_not_on_the_batch():
    def denoiser(histories, zs, t, conditions):
        return [0.5 * z + past.sum() for past, z in zip(histories, zs)]

    config = SampleConfig(clips=(2, 2), window=8, steps=3, guidance=2.0)
    first, second = counting(3), counting(3) + 1
    together = rollout(denoiser, [first, second], config, keyed_noise([7, 8], 0))
    alone = rollout(denoiser, [second], config, keyed_noise([8], 0))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone[0], rollout(denoiser, [second], config, keyed_noise([8], 1))[0])
    assert not torch.equal(alone[0], rollout(denoiser, [second], config, keyed_noise([9], 0))[0])
    draw = keyed_noise([7], 0)
    assert not torch.equal(draw(0, 0, "init", (1, 1, 2, 2)), draw(0, 1, "init", (1, 1, 2, 2)))


def test_the_scale_of_guidance_follows_its_schedule_and_skips_the_second_branch_at_one():
    """Each Euler step of a constant prediction moves the share ``move / left`` of the way to ``u + s (c - u)``."""
    cond, uncond, schedule, sizes = 2.0, 0.5, ((0.2, 5.0), (0.6, 1.0)), []

    def function(histories, zs, t, conditions):
        sizes.append(len(zs))
        return [torch.full_like(z, cond if len(past) else uncond) for past, z in zip(histories, zs)]

    (end,) = denoise_clips(function, [torch.zeros(2, 1, 1, 1)], [torch.zeros(1, 1, 1, 1)], 10, 3.0, schedule=schedule)
    expected = 0.0
    for step in range(10):
        scale = 3.0 if step < 2 else 5.0 if step < 6 else 1.0
        expected += (uncond + scale * (cond - uncond) - expected) * 0.1 / (1 - step / 10)
    assert float(end) == pytest.approx(expected, abs=1e-5)
    assert sizes == [2] * 6 + [1] * 4


class Told:
    """A denoiser that notes what it is told, and checks that frames which it is told are kept really are."""

    def __init__(self):
        self.kept, self.fed = [], []

    def begin(self, conditions):
        assert conditions == [None] * len(conditions)

    def remember(self, histories, kept):
        for number, count in enumerate(kept):
            if count:
                assert torch.equal(histories[number][:count], self.fed[-1][number][:count])
        self.kept.append(kept)
        self.fed.append(histories)

    def predict(self, clips, t, guided):
        return [clip + past.sum() for past, clip in zip(self.fed[-1], clips)], None


@given(
    first=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    clips=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    spare=st.integers(1, 12),
    level=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_kept_frames_are_those_of_the_call_before_and_as_many_as_there_can_be(first, clips, spare, level):
    told, window = Told(), max(clips) + spare
    plan = Settings(tuple(clips), window, 1, history_noise=level)
    continue_videos(told, [counting(frames) for frames in first], plan, keyed_noise(range(len(first)), 0))
    for video, frames in enumerate(first):
        length = frames
        for number, clip in enumerate(clips):
            slides, before = length > window - clip, length - (clips[number - 1] if number else length)
            assert told.kept[number][video] == (0 if slides or level or not number else before)
            length = min(length, window - clip)
            assert len(told.fed[number][video]) == length
            length += clip


def test_mistakes_are_told_in_one_line():
    with pytest.raises(ValueError, match="needs at least one clip"):
        rollout(last_frame_plus_one, [counting(3)], SampleConfig(clips=(2, 0)), keyed_noise([0], 0))
    with pytest.raises(ValueError, match="window=4: clip 2 of 5 frames leaves no room for itself"):
        rollout(last_frame_plus_one, [counting(3)], SampleConfig(clips=(2, 5), window=4), keyed_noise([0], 0))
    with pytest.raises(ValueError, match="steps=0"):
        sigmas(0, 1.0)
    with pytest.raises(ValueError, match="time_shift=0"):
        sigmas(3, 0.0)
