"""What samples are given, as it is planned: draws from the keys, and closed forms against layouts and enumeration."""

from __future__ import annotations

import itertools
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.packing import StepPlanner
from megatron_videogpt.data.plans import Plans, Sample, plan_samples, sample_key
from megatron_videogpt.data.splits import PhysicsSplit
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.objective.next_clip.work import NextClipWork
from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask

KEYS = [sample_key(0, 0, number) for number in range(2000)]
OBJECTIVE = NextClipDiffusion(2, 16, no_prefix=torch.zeros(0, 5))


def planned(condition: ConditionConfig, prefix: np.ndarray | int = 0, **data: object) -> Plans:
    config = DataConfig(**{"frames": 6, "clips": (1, 4), "frame_interval": (1, 2), **data})
    sizes = np.array([32, 48] * (len(KEYS) // 2)), np.full(len(KEYS), 64)
    return plan_samples(config, 1, KEYS, range(len(KEYS)), 0, 0, None, sizes, condition, prefix)


def sample_of(plans: Plans, place: int) -> Sample:
    """The sample of a plan, of latents without content; 16 pixels a latent cell."""
    plan = plans[place]
    frames, (height, width) = sum(plan.clips), plan.size
    return Sample(
        key=plan.key,
        name="",
        mean=torch.zeros(frames, 4, height // 8, width // 8),
        logvar=None,
        clips=plan.clips,
        condition=torch.zeros(plan.prefix, 5) if plan.prefix else None,
        given=plan.given,
        dropped=plan.dropped,
    )


def test_an_unconditional_plan_is_what_it_was() -> None:
    plain, conditioned = planned(ConditionConfig()), planned(ConditionConfig(dropout=0.3), prefix=1)
    assert plain[7].frames == conditioned[7].frames and not plain.dropped.any() and not plain.given.any()
    assert np.array_equal(plain.cuts, conditioned.cuts) and np.array_equal(plain.interval, conditioned.interval)


def test_given_frames_are_the_first_clip_and_leave_one_to_predict() -> None:
    plans = planned(ConditionConfig(frames=(0, 3)))
    counts = np.bincount(plans.given, minlength=4) / len(plans)
    assert np.abs(counts - 0.25).max() < 0.03, "uniform"
    for place in range(200):
        plan = plans[place]
        rest = plan.clips[1:] if plan.given else plan.clips
        assert sum(plan.clips) == 6 and 1 <= len(rest) <= 4 and (not plan.given or plan.clips[0] == plan.given)
    few = planned(ConditionConfig(frames=(3, 3)), frames=2)
    assert (few.given == 1).all() and (few.count == 2).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_conditions_are_dropped_by_the_key_alone(share: float) -> None:
    some = np.arange(len(KEYS)) % 2
    plans = planned(ConditionConfig(dropout=share), prefix=some)
    assert not plans.dropped[some == 0].any(), "there is nothing to drop"
    assert abs(plans.dropped[some == 1].mean() - share) < 0.03
    again = planned(ConditionConfig(dropout=share, frames=(1, 2)), prefix=1, clips=(2, 2))
    assert np.array_equal(again.dropped[some == 1], plans.dropped[some == 1])
    # Who is dropped at a smaller share is dropped at a larger one.
    more = planned(ConditionConfig(dropout=min(0.9, share + 0.2)), prefix=some)
    assert (more.dropped >= plans.dropped).all()


def test_work_is_the_layouts() -> None:
    prefix = np.arange(len(KEYS)) % 7
    plans = planned(ConditionConfig(frames=(0, 4), dropout=0.4), prefix=prefix).take(np.arange(120))
    work = NextClipWork(16, 6, (1, 4), (1.0, 1.0)).of(plans)
    kinds = set()
    for place in range(len(plans)):
        sample = sample_of(plans, place)
        row = OBJECTIVE.prepare([sample], 1)
        assert (work.tokens[place], work.scored[place]) == (row.length, len(row.scored_rows)), plans[place]
        assert work.pairs[place] == attended_pairs(row.intervals) == int(dense_mask(row.intervals).sum())
        assert work.scored_pairs[place] == int(dense_mask(row.intervals)[row.scored_rows].sum())
        assert row.length == OBJECTIVE.length(sample)
        kinds.add((bool(sample.given), sample.condition is not None, sample.dropped))
    assert len(kinds) == 7, "every combination but a dropped nothing"


@pytest.mark.parametrize("given", [(0, 0), (0, 2), (2, 3), (3, 9)])
def test_expected_work_is_the_mean_over_all_draws(given: tuple[int, int]) -> None:
    frames, clips, prefix, share, patches = 5, (1, 3), 3, 0.25, 6
    closed = NextClipWork(1, frames, clips, (1.0, 1.0), given, prefix, share)
    low, high = (min(bound, frames - 1) for bound in given)
    mean, largest = np.zeros(4), np.zeros(4)
    for first in range(low, high + 1):
        free = frames - first
        counts = range(min(clips[0], free), min(clips[1], free) + 1)
        for count in counts:
            splits = list(itertools.combinations(range(1, free), count - 1))
            for split in splits:
                cuts = np.zeros((2, frames - 1), dtype=bool)
                cuts[:, [first + cut - 1 for cut in split]] = True
                if first:
                    cuts[:, first - 1] = True
                column = np.zeros(2, dtype=np.int64)
                plans = Plans(
                    *(column,) * 6, column + frames, cuts, column + 2, column + 3, column + 1,
                    column + first, np.array([False, True]), column + prefix,
                )  # fmt: skip
                work = closed.of(plans)
                parts = np.stack(astuple(work))
                chance = 1 / (high - low + 1) / len(counts) / len(splits)
                mean += chance * ((1 - share) * parts[:, 0] + share * parts[:, 1])
                largest = np.maximum(largest, parts.max(axis=1))
    expected, most = closed.expected((2, 3)), closed.largest((2, 3))
    assert astuple(expected) == pytest.approx(tuple(mean), rel=1e-12)
    assert most.tokens == largest[0] and most.pairs >= largest[1]
    assert closed.patches(2, 3) == patches
    assert closed.longest(np.array([1, 5]), (np.array([2, 2]), np.array([3, 3])))[1] == most.tokens


def test_rows_come_out_as_long_as_they_were_planned() -> None:
    condition = ConditionConfig(kind="class", classes=("fall", "bounce"), dropout=0.3, frames=(0, 2))
    data = DataConfig(frames=4, clips=(1, 4), pack_tokens=400, row_lengths=6, workers=0)
    data = replace(data, physics=replace(data.physics, scenes=("fall", "bounce")))
    config = Config(model=ModelConfig(position_table_size=16), data=data, condition=condition)
    config = replace(config, train=replace(config.train, global_batch_size=24))
    split = PhysicsSplit("train", data, 1, Conditioning(condition))
    planner = StepPlanner(split, 0, config, NextClipWork(16, 4, (1, 4), (1.0, 1.0), (0, 2), 1, 0.3), 2)
    step = planner.step(0)
    objective = NextClipDiffusion(2, 16, no_prefix=torch.zeros(0, dtype=torch.int64))
    for row in (row for rank in step.rows for row in rank):
        samples = [replace(sample_of(step.plans, place), condition=torch.tensor([1])) for place in row.samples]
        prepared = objective.prepare(samples, row.length)
        assert prepared.length == row.length
    assert step.plans.prefix.tolist() == [1] * 24 and 0 < step.plans.dropped.sum() < 24
    # Another row length is another sample's work: a condition belongs to what order and content follow from.
    assert split.fingerprint != PhysicsSplit("train", data, 1).fingerprint


def test_a_label_belongs_to_its_longest_class() -> None:
    options = ConditionConfig(kind="class", classes=("roll", "roll/left", "bounce"))
    conditioning = Conditioning(options)
    assert [conditioning.number(name) for name in ("roll/left/fast", "roll/right/fast", "roll", "bounce/left")] == [
        1,
        0,
        0,
        2,
    ]
    with pytest.raises(
        UserError, match=r"^class 'bouncy' is not one of the 3 of condition.classes; the nearest: bounce"
    ):
        conditioning.number("bouncy")
