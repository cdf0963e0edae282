"""Splits of made-up videos: sizes, longest samples, mixtures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig, PhysicsConfig
from megatron_videogpt.data.mixture import Mixture
from megatron_videogpt.data.plans import SamplePlan
from megatron_videogpt.data.sources.datasets import FILE_ENTRY
from megatron_videogpt.data.sources.open import Source, open_source
from megatron_videogpt.data.splits import VideoSplit, resized_sizes
from megatron_videogpt.data.video.pictures import resized_shape
from megatron_videogpt.objective.next_clip.work import NextClipWork, clip_work


@dataclass(frozen=True, eq=False)
class Made:
    """Videos that exist as numbers only: (width, height, frames) each."""

    entries: np.ndarray
    fingerprint: str = "made"

    def name(self, entry: int) -> str:
        return f"made-{entry}"

    def job(self, plan: SamplePlan, entry: int) -> tuple[SamplePlan, int]:
        return plan, entry


def made(config: DataConfig, sizes: list[tuple[int, int, int]], dataset: int = 0, stride: int = 1) -> VideoSplit:
    entries = np.array([(*size, 24.0, 1000) for size in sizes], FILE_ENTRY)
    return VideoSplit("train", config, stride, Made(entries), np.arange(len(sizes)), dataset)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(8, 8192), st.integers(8, 8192)), min_size=1, max_size=30),
    st.sampled_from([(320, 16), (64, 16), (128, 8), (640, 32)]),
)
@settings(max_examples=100, deadline=None)
def test_sizes_are_those_of_the_resizer(sizes: list[tuple[int, int]], target: tuple[int, int]) -> None:
    heights, widths = resized_sizes(
        np.array([w for w, _ in sizes], np.uint32), np.array([h for _, h in sizes], np.uint32), *target
    )
    for (width, height), found in zip(sizes, zip(widths.tolist(), heights.tolist())):
        try:
            assert resized_shape(width, height, *target) == found
        except ValueError:
            assert min(found) == 0


@given(
    sizes=st.lists(st.tuples(st.integers(128, 400), st.integers(128, 400), st.integers(1, 60)), min_size=1, max_size=6),
    frames=st.integers(1, 12),
    interval=st.integers(1, 3),
    stride=st.sampled_from([1, 4]),
    clips=st.sampled_from([(1, 1), (1, 3), (2, 20)]),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_sample_is_an_upper_bound_that_is_reached(
    sizes: list[tuple[int, int, int]], frames: int, interval: int, stride: int, clips: tuple[int, int]
) -> None:
    """Against the trainer's own closed form of one sequence, over the clip splits that can be drawn."""
    config = DataConfig(
        frames=frames,
        min_frames=1,
        frame_interval=(interval, interval + 2),
        clips=clips,
        longest_side=64,
        size_multiple=16,
    )
    split = made(config, sizes, stride=stride)
    cell, best = 16, 0
    for width, height, available in sizes:
        w, h = resized_shape(width, height, 64, 16)
        n = max(n for n in range(1, frames + 1) if n == 1 or (n - 1) * stride * interval < available)
        splits = [(n,)] if clips[1] == 1 or n == 1 else [(n - 1, 1)]
        best = max(best, *(int(clip_work(each, (w // cell) * (h // cell)).tokens) for each in splits))
    work = NextClipWork(cell, frames, clips, (1.0, 1.0))
    assert split.largest_tokens(work.longest) == best
    assert int(work.of(split.plans(0, range(50))).tokens.max()) <= best


def test_mixtures_meet_their_weights_and_complete_every_epoch() -> None:
    config = DataConfig(frames=4, frame_interval=(1, 1), clips=(1, 4), longest_side=64)
    weights = (0.2, 0.5, 0.3)
    parts = tuple(made(config, [(64, 32 + 16 * i, 4)] * length, dataset=i) for i, length in enumerate((7, 40, 11)))
    mixture = Mixture("train", parts, weights)
    assert len(mixture) == 80  # 40 samples of the second set take 80
    plans = mixture.plans(0, range(800))
    assert plans.number.tolist() == list(range(800))
    for i, (part, weight) in enumerate(zip(parts, weights)):
        mine = plans.item[plans.dataset == i]
        assert len(mine) == 800 * weight
        for start in range(0, len(mine) - len(part) + 1, len(part)):
            assert sorted(mine[start : start + len(part)]) == list(range(len(part)))
        assert set(plans.height[plans.dataset == i]) == {32 + 16 * i}
    # In every stretch of the pattern each set is within one sample of its share.
    for i, weight in enumerate(weights):
        assert np.abs(np.cumsum(plans.dataset == i) - weight * np.arange(1, 801)).max() <= 1
    assert len(set(plans.key.tolist())) == 800
    longest = NextClipWork(16, 4, (1, 4), (1.0, 1.0)).longest
    assert mixture.largest_tokens(longest) == max(part.largest_tokens(longest) for part in parts)
    assert mixture.job(plans[5]) == (plans[5], plans[5].item)  # type: ignore[comparison-overlap]
    pick = [701, 2, 399]
    assert [mixture.plans(0, pick)[i] for i in range(3)] == [plans[i] for i in pick]
    assert (
        Mixture("train", parts, (2.0, 5.0, 3.0)).fingerprint
        == mixture.fingerprint
        != Mixture("train", parts, (0.3, 0.4, 0.3)).fingerprint
    )


def test_scenes_that_are_favoured_in_training_are_not_when_held_out() -> None:
    def opened(*scenes: str) -> Source:
        return open_source(DataConfig(physics=PhysicsConfig(scenes=scenes)), expected_geometry(CodecConfig()))

    favoured, plain = opened("fall", "bounce", "bounce", "bounce"), opened("fall", "bounce")
    assert favoured.validation.fingerprint == plain.validation.fingerprint
    assert favoured.train.fingerprint != plain.train.fingerprint
    plans = favoured.train.plans(0, range(2000))
    kinds = Counter(favoured.train.job(plan).label.partition("-")[0] for plan in plans)
    # Three of four, within four standard deviations.
    assert abs(kinds["bounce"] - 1500) < 4 * (2000 * 0.75 * 0.25) ** 0.5 and kinds["fall"] + kinds["bounce"] == 2000
