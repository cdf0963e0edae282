"""What makes a validation loss comparable: noise levels that are shared out, the loss of frames apart, its standard
error.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.breakdown import doubling, equal
from megatron_videogpt.objective.frame_prompt.factorised.objective import FactorisedPrompt
from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant
from megatron_videogpt.objective.frame_prompt.objective import FramePromptDiffusion
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.objective.noise import generator, normal, uniform
from megatron_videogpt.train.progress import tell_validation
from megatron_videogpt.train.standard_errors import means_with_errors

pytestmark = pytest.mark.usefixtures("processes")


def sample(key: int, frames: int, clips: tuple[int, ...], **facts: Any) -> Sample:
    return Sample(
        key=key, name=str(key), mean=normal(key, "latents", (frames, 4, 4, 4)), logvar=None, clips=clips, **facts
    )


@pytest.mark.parametrize("count", [1, 2, 6, 64, 1500])
def test_each_of_n_samples_has_levels_in_parts_of_its_own(count: int) -> None:
    """Exactly one sample in each of n equal parts, whatever clip it is."""
    draws = torch.stack([uniform(900 + place, "timestep", 3, (place, count)) for place in range(count)]).double()
    assert draws.min() >= 0 and draws.max() < 1
    middles = torch.arange(count)[:, None] + 0.5
    assert (draws.sort(dim=0).values * count - middles).abs().max() < 0.5 + 1e-3
    again = uniform(900, "timestep", 5, (0, count))
    assert torch.equal(again[:3].double(), draws[0]), "the first levels do not depend on how many clips there are"
    if count == 64:
        # Parts of one clip say nothing of those of another.
        assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.3
        inside = draws * count % 1
        assert abs(float(inside.mean()) - 0.5) < 0.1, "and a level may lie anywhere in its part"


def test_training_draws_as_before() -> None:
    plain = torch.rand(7, generator=generator(5, "timestep"))
    assert torch.equal(uniform(5, "timestep", 7), plain)


def test_objectives_that_denoise_take_their_levels() -> None:
    """Of 20 samples the levels of each clip, or of the only one, and of the table's steps, lie in 20 parts."""
    chosen, prompted, steps = [], [], []
    clip, prompt = NextClipDiffusion(2, 16), FramePromptDiffusion(2, 16, (1, 2), 2)
    factorised = FactorisedPrompt(Variant(), 2, (1, 2), 2)
    for place in range(20):
        one = sample(50 + place, 4, (1, 2, 1), stratum=(place, 20))
        chosen.append(clip.sequence(one).timestep)
        prompted.append(prompt.sequence(one).timestep[-1])
        steps.append(factorised.video(one).timestep[-1] / 1000)
        assert torch.equal(clip.sequence(one).noisy[0], clip.sequence(one).noisy[0])
    levels = torch.stack(chosen)
    assert torch.equal(levels[:, 1], levels[:, 2]), "one level a clip"
    for found in (levels[:, 0], levels[:, 1], levels[:, 3], torch.stack(prompted), torch.stack(steps)):
        assert sorted((found.double() * 20).floor().int().tolist()) == list(range(20))


def test_groups_hold_each_number_once() -> None:
    for count in range(1, 90):
        for groups in (equal(count), doubling(count)):
            numbers = [number for first, last in groups for number in range(first, last + 1)]
            assert numbers == list(range(count))
        assert len(equal(count)) <= 8
    assert equal(16) == tuple((n, n + 1) for n in range(0, 16, 2)) and equal(5) == tuple((n, n) for n in range(5))
    assert doubling(12) == ((0, 0), (1, 1), (2, 3), (4, 7), (8, 11))


def seen_frames(row: Any, stored: Tensor, patches: int) -> list[int]:
    """Of each noisy patch's row, how many whole frames of those tokens its intervals hold."""
    intervals = row.intervals[row.scored_rows]
    return [
        int(sum(((stored >= a) & (stored < b)).sum() for a, b in pairs.view(2, 2).tolist())) // patches
        for pairs in intervals
    ]


def test_next_clip_tells_its_loss_apart_by_what_each_frame_sees() -> None:
    """Against the mask itself: the history of a frame is how many clean frames its patches see."""
    samples = [
        sample(1, 6, (1, 2, 3)),
        sample(2, 5, (2, 1, 2), given=2),
        sample(3, 5, (2, 1, 2), given=2, dropped=True),
    ]
    places = [[0, 1, 2, 3, 4, 5], [2, 3, 4], [0, 1, 2]]
    objective = NextClipDiffusion(2, 16, no_prefix=torch.zeros(0, 5), frames=6)
    row = objective.prepare(samples, 8)
    history = seen_frames(row, row.streams["clean"].rows, 4)
    frames = row.streams["noisy"]["frame"].tolist()
    found: dict[str, list[float]] = {}
    output = normal(4, "output", tuple(row.target.shape))
    error = (output - row.target).square().mean(1).tolist()
    place = [one + 2 * (n == 2) for n, part in enumerate(places) for one in part]
    for patch, frame in enumerate(frames):
        seen = history[patch]
        group = str(seen) if seen < 2 else "2-3" if seen < 4 else "4-5"
        for name in (f"frame_loss_{place[frame]}", f"history_loss_{group}"):
            found.setdefault(name, []).append(error[patch])
    with torch.no_grad():
        score = objective.score(output, row)
    names = [metric.name for metric in objective.metrics]
    assert len(score.sums) == len(score.counts) == len(names)
    numbers = {n: (float(s), int(c)) for n, s, c in zip(names, score.sums, score.counts) if "_loss_" in n and c}
    assert numbers == {
        name: (pytest.approx(sum(values) / 4, rel=1e-5), len(values) // 4) for name, values in found.items()
    }
    assert sum(count for name, (_, count) in numbers.items() if name.startswith("history")) == row.count == 12
    learning = objective.score(output.requires_grad_(), row)
    assert len(learning.sums) == 5, "training knows the noise levels alone"


@pytest.mark.parametrize("factorised", [False, True])
def test_frame_prompt_tells_its_loss_apart_by_prompt_and_place(factorised: bool) -> None:
    lengths, chunk = (1, 2, 3), 2
    plain, other = FramePromptDiffusion(2, 16, lengths, chunk), FactorisedPrompt(Variant(), 2, lengths, chunk)
    objective: Any = other if factorised else plain
    samples = [sample(key, 5, (5,)) for key in range(9)]
    row = objective.prepare(samples, 4)
    splits = [objective.split(one) for one in samples]
    assert {prompt for prompt, _ in splits} == set(lengths)
    output = normal(1, "output", (len(row.target), row.target.shape[1] * (1 + factorised)))
    with torch.no_grad():
        score = objective.score(output, row)
    names = [metric.name for metric in objective.metrics]
    sums, counts = (dict(zip(names, part.tolist())) for part in (score.sums, score.counts))
    for length in lengths:
        assert counts[f"history_loss_{length}"] == sum(n for prompt, n in splits if prompt == length)
    assert counts["history_loss_0"] == 0 and counts["frame_loss_0"] == counts["frame_loss_1"] == 9
    for kind in ("frame", "history"):
        whole = sum(value for name, value in sums.items() if name.startswith(f"{kind}_loss_"))
        assert whole == pytest.approx(float(score.total), rel=1e-5)
    # The first frame behind each prompt, alone.
    first = [n for n, frame in enumerate(row.streams[row.scored]["frame"].tolist()) if row.units["frame"][frame] == 0]
    alone = torch.zeros_like(row.weight).index_fill(0, torch.tensor(first), 1.0)
    assert len(first) == 9 * 4
    part = objective.score(output, dataclasses.replace(row, weight=row.weight * alone))
    assert sums["frame_loss_0"] == pytest.approx(float(part.total), rel=1e-5)


def test_standard_errors_have_their_closed_forms() -> None:
    random = np.random.default_rng(0)
    values = random.random(9).astype(np.float32)
    sums, ones = values[:, None], np.ones((9, 1), np.int64)
    even = means_with_errors(("loss",), sums, ones, range(9))
    wide = values.astype(float)
    assert even == pytest.approx({"loss": wide.mean(), "se_loss": wide.std(ddof=1) / 3}, rel=1e-12)
    # What is measured twice in each video is not known better for it.
    twice = means_with_errors(("loss",), np.concatenate([sums, sums]), np.concatenate([ones, ones]), [*range(9)] * 2)
    assert twice == pytest.approx(even, rel=1e-12)
    # Means of different weight: of a ratio, whose second column counts to two videos, and the third to one.
    sums = np.array([[3.0, 1.0, 0.0], [2.0, 4.0, 2.0], [9.0, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    counts = np.array([[2, 1, 0], [1, 3, 1], [3, 0, 0], [1, 0, 0]])
    found = means_with_errors(("a", "b", "c"), sums, counts, ["x", "y", "z", "x"])
    mean = 15 / 7
    spread = (4 - 3 * mean) ** 2 + (2 - mean) ** 2 + (9 - 3 * mean) ** 2
    assert found.pop("se_a") == pytest.approx(math.sqrt(3 / 2 * spread) / 7, rel=1e-12)
    assert found.pop("se_b") == pytest.approx(math.sqrt(2 * ((1 - 1.25) ** 2 + (4 - 3.75) ** 2)) / 4, rel=1e-12)
    assert found == pytest.approx({"a": mean, "b": 1.25, "c": 2.0}), "one video has no standard error"
    assert means_with_errors(("a",), np.zeros((2, 1)), np.zeros((2, 1)), [0, 1]) == {}


def test_standard_errors_are_as_large_as_means_scatter() -> None:
    """2,000 validations over 40 videos of 1 to 3 samples whose losses share their video's: the error's mean square is
    the variance of the mean.
    """
    random, means, squares = np.random.default_rng(1), [], []
    for _ in range(2000):
        videos = np.repeat(np.arange(40), random.integers(1, 4, 40))
        counts = random.integers(1, 5, (len(videos), 1))
        losses = 1 + random.standard_normal(40)[videos] + random.standard_normal(len(videos))
        found = means_with_errors(("loss",), losses[:, None] * counts, counts, videos.tolist())
        means.append(found["loss"])
        squares.append(found["se_loss"] ** 2)
    assert np.mean(squares) == pytest.approx(np.var(means), rel=0.1)


def test_a_validation_is_told_in_a_line() -> None:
    for values, line in (
        ({"validation_loss": 0.12345, "validation_se_loss": 0.004}, "step 7/20  validation loss 0.1235 +- 0.0040\n"),
        ({"validation_loss": 0.5}, "step 7/20  validation loss 0.5000\n"),
        ({"prediction_mse": 1.0}, ""),
    ):
        text = io.StringIO()
        tell_validation(7, 20, values, Console(file=text, width=80))
        assert text.getvalue() == line
