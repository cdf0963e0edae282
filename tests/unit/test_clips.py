"""Sample plans: pure functions of their key, with the distributions that the paper's recipe states."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.plans import Plans, derived_key, plan_samples, sample_key, shortest_video, split_clips
from megatron_videogpt.objective.next_clip.work import NextClipWork, clip_work
from megatron_videogpt.sequence.intervals import attended_pairs
from megatron_videogpt.sequence.layout import NOISY, NOISY_PATCH, layout, training_shape

WORK = NextClipWork(16, 80, (2, 80), (1.0, 1.0))

UNLIKELY = 1e-4  # p values of correct draws fall below this in one of ten thousand tests; seeds are fixed


def draw(config: DataConfig, n: int, available: int | np.ndarray | None, stride: int = 1, seed: int = 0) -> Plans:
    keys = [sample_key(seed, 0, i) for i in range(n)]
    return plan_samples(
        config,
        stride,
        keys,
        np.arange(n),
        0,
        7,
        None if available is None else np.broadcast_to(available, (n,)),
        (64, 96),
    )


@given(
    frames=st.integers(1, 40),
    low=st.integers(1, 6),
    extra=st.integers(0, 6),
    stride=st.sampled_from([1, 4]),
    slack=st.lists(st.integers(0, 200), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    clips=st.tuples(st.integers(1, 40), st.integers(0, 40)),
    least=st.integers(0, 40),
)
@settings(max_examples=300, deadline=None)
def test_plans_fit_the_video(
    frames: int, low: int, extra: int, stride: int, slack: list[int], seed: int, clips: tuple[int, int], least: int
) -> None:
    config = DataConfig(
        frames=frames,
        min_frames=min(least, frames),
        frame_interval=(low, low + extra),
        clips=(clips[0], clips[0] + clips[1]),
    )
    shortest = (min(frames, config.min_frames or frames) - 1) * stride * low + 1
    assert shortest_video(config, stride) == shortest
    available = shortest + np.array(slack)
    plans = draw(config, len(slack), available, stride, seed)
    for i, room in enumerate(available.tolist()):
        plan = plans[i]
        latents = min(frames, (room - 1) // (stride * low) + 1)
        assert len(plan.frames) == 1 + stride * (latents - 1) and plan.frames[0] >= 0 and plan.frames[-1] < room
        assert set(np.diff(plan.frames)) <= {plan.interval} and low <= plan.interval <= low + extra
        assert sum(plan.clips) == latents and min(plan.clips) >= 1
        assert min(clips[0], latents) <= len(plan.clips) <= min(clips[0] + clips[1], latents)
        assert (plan.number, plan.key, plan.dataset, plan.item, plan.size) == (
            i,
            sample_key(seed, 0, i),
            0,
            7,
            (64, 96),
        )
    with pytest.raises(ValueError, match="too short"):
        draw(config, len(slack), np.minimum(available, shortest - 1), stride, seed)


def test_clip_counts_are_uniform_and_so_are_their_cuts() -> None:
    """6 frames, K in 1..5: K uniform, and for each K all C(5, K-1) choices of cut points alike."""
    plans = draw(DataConfig(frames=6, frame_interval=(1, 1), clips=(1, 5)), 20_000, None)
    made = Counter(tuple(np.flatnonzero(cuts).tolist()) for cuts in plans.cuts)
    counts = Counter(len(cuts) for cuts in made.elements())
    assert chisquare([counts[k] for k in range(5)]).pvalue > UNLIKELY
    for k in range(1, 5):
        assert chisquare([made[cuts] for cuts in combinations(range(5), k)]).pvalue > UNLIKELY
    # What the tools draw one by one has the same distribution.
    rng = random.Random(1)
    single = Counter(split_clips(rng, 6, (1, 5)) for _ in range(20_000))
    batch = Counter(plans[i].clips for i in range(len(plans)))
    assert (
        chi2_contingency([[single[clips] for clips in sorted(batch)], [batch[clips] for clips in sorted(batch)]]).pvalue
        > UNLIKELY
    )


def test_interval_and_start_are_uniform_within_what_the_video_allows() -> None:
    plans = draw(
        DataConfig(frames=5, frame_interval=(2, 9), clips=(1, 5)), 20_000, 17
    )  # 17 frames allow an interval of 4
    intervals = Counter(plans.interval.tolist())
    assert sorted(intervals) == [2, 3, 4] and chisquare(list(intervals.values())).pvalue > UNLIKELY
    for interval, places in ((2, 9), (3, 5), (4, 1)):
        starts = np.bincount(plans.start[plans.interval == interval], minlength=places)
        assert len(starts) == places and (places == 1 or chisquare(starts).pvalue > UNLIKELY)
    # Draws do not go with each other.
    table = np.zeros((3, 5))
    np.add.at(table, (plans.interval - 2, plans.cuts.sum(axis=1)), 1)
    assert chi2_contingency(table).pvalue > UNLIKELY


def test_stage_4_draws_its_means() -> None:
    """80 frames, K uniform on 2..80: mean number of clips 41; a last clip of n frames has mean 80 / K."""
    plans = draw(DataConfig(frames=80, frame_interval=(4, 12), clips=(2, 80)), 20_000, 10_000)
    clips = plans.cuts.sum(axis=1) + 1
    assert abs(clips.mean() - 41) < 5 * (79**2 - 1) ** 0.5 / 12**0.5 / 20_000**0.5
    last = 80 - plans.kept
    for k in (2, 10, 40):
        some = last[abs(clips - k) <= 1]
        expected = np.mean([80 / count for count in clips[abs(clips - k) <= 1]])
        assert abs(some.mean() - expected) < 5 * some.std() / len(some) ** 0.5
    assert abs(plans.interval.mean() - 8) < 5 * (80 / 12 / 20_000) ** 0.5


@given(
    frames=st.integers(1, 30),
    clips=st.tuples(st.integers(1, 30), st.integers(0, 30)),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_the_work_of_plans_is_that_of_their_clips(
    frames: int, clips: tuple[int, int], sides: tuple[int, int], seed: int
) -> None:
    config = DataConfig(frames=frames, min_frames=1, frame_interval=(1, 2), clips=(clips[0], sum(clips)))
    room = np.random.default_rng(seed).integers(1, 40, 6)
    keys = [sample_key(seed, 1, i) for i in range(6)]
    plans = plan_samples(config, 1, keys, np.arange(6), 0, 0, room, (16 * sides[0] + 15, np.full(6, 16 * sides[1])))
    works = [clip_work(plans[i].clips, sides[0] * sides[1]) for i in range(6)]
    found = WORK.of(plans)
    for name in ("tokens", "pairs", "scored"):
        values, expected = getattr(found, name), [getattr(work, name) for work in works]
        assert values.dtype == np.int64 and values.tolist() == expected
        assert all(type(value) is int for value in expected)
    assert plans.kept.tolist() == [sum(plans[i].clips[:-1]) for i in range(6)]
    assert plans.squares.tolist() == [sum(n * n for n in plans[i].clips) for i in range(6)]


def test_the_work_of_plans_is_what_their_layouts_have() -> None:
    plans = draw(DataConfig(frames=7, min_frames=1, frame_interval=(1, 1), clips=(1, 7)), 12, np.arange(1, 13))
    work = WORK.of(plans)
    for i in range(12):
        made = layout(training_shape(plans[i].clips, (4, 6)))
        counts = len(made), attended_pairs(made.intervals), len(made.rows(NOISY, NOISY_PATCH))
        assert (work.tokens[i], work.pairs[i], work.scored[i]) == counts


def test_a_plan_does_not_depend_on_its_neighbours() -> None:
    config = DataConfig(frames=9, min_frames=3, frame_interval=(2, 5), clips=(2, 9))
    room = np.arange(20, 60)
    plans = draw(config, 40, room)
    keys, numbers = [sample_key(0, 0, i) for i in range(40)], np.arange(40)
    order = np.arange(40)[::-3]
    again = plan_samples(config, 1, np.array(keys, np.uint64)[order], numbers[order], 0, 7, room[order], (64, 96))
    assert [again[i] for i in range(len(order))] == [plans[int(i)] for i in order]
    taken = plans.take(order)
    assert [taken[i] for i in range(len(order))] == [plans[int(i)] for i in order]
    wider = draw(DataConfig(frames=12, frame_interval=(2, 5), clips=(2, 9)), 3, 100)
    both = Plans.concatenate([plans, wider])
    assert len(both) == 43 and [both[i] for i in range(43)] == [
        *(plans[i] for i in range(40)),
        *(wider[i] for i in range(3)),
    ]
    whole, parts = WORK.of(both), [WORK.of(plans), WORK.of(wider)]
    assert whole.tokens.tolist() == [*parts[0].tokens, *parts[1].tokens]
    assert whole.pairs.tolist() == [*parts[0].pairs, *parts[1].pairs]


def test_plans_stay_what_they_are() -> None:
    """Resumed runs rely on it: a change of the draws must come with a new `splits.SAMPLING`."""
    plans = draw(
        DataConfig(frames=80, min_frames=16, frame_interval=(4, 12), clips=(2, 80)), 1000, np.arange(100, 1100)
    )
    digest = blake2b(digest_size=8)
    for values in (plans.start, plans.interval, plans.count, plans.cuts.astype(np.int64)):
        digest.update(values.astype("<i8").tobytes())
    assert digest.hexdigest() == "38f2b7dcfab80428"


def test_keys_are_distinct_and_63_bits() -> None:
    keys = {
        sample_key(s, e, i, split)
        for s in range(3)
        for e in range(3)
        for i in range(50)
        for split in ("train", "validation")
    }
    assert len(keys) == 900 and all(0 <= key < 2**63 for key in keys)
    assert sample_key(1, 2, 3) == int.from_bytes(blake2b(b"train/1/2/3", digest_size=8).digest(), "big") >> 1
    assert derived_key(1, "plan") != derived_key(1, "scene") != derived_key(2, "scene")
