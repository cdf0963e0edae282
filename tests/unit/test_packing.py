"""Steps as they are planned: every sample in exactly one row, rows within the budget, equal counts, balanced costs, the
same plan read_on_all_ranks.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.codec.geometry import CodecGeometry, expected_geometry
from megatron_videogpt.config.derived import typical_frame
from megatron_videogpt.config.schema import Config, ParallelConfig, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.packing import StepPlan, StepPlanner, cost_weights, sample_costs
from megatron_videogpt.data.plans import Plans, plan_samples, sample_key
from megatron_videogpt.data.splits import Longest
from megatron_videogpt.model.flops import attention_flops, linear_flops
from megatron_videogpt.objective.build import work_of
from megatron_videogpt.objective.next_clip.parameters import end_weights
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.plan.estimate import longest_row, mean_row, objective_work, packed_rows
from megatron_videogpt.plan.memory import micro_batches

WORK = work_of(Config(data=DataConfig(clips=(2, 12))), CodecGeometry(4, 8, 1))
"""Patches of 16 pixels."""


class Videos:
    """A split of videos whose lengths and sizes follow from their number."""

    name, fingerprint = "train", "ab"

    def __init__(self, config: DataConfig, length: int = 10_000) -> None:
        self.config, self.length = config, length

    def __len__(self) -> int:
        return self.length

    def plans(self, seed: int, numbers: np.ndarray) -> Plans:
        numbers = np.asarray(numbers)
        keys = [sample_key(seed, *divmod(int(number), self.length)) for number in numbers]
        room = 4 + np.array(keys) % 97
        height, width = 16 * (1 + np.array(keys) // 97 % 6), 16 * (1 + np.array(keys) // 582 % 8)
        return plan_samples(self.config, 1, keys, numbers, 0, numbers % self.length, room, (height, width))

    def largest_tokens(self, longest: Longest) -> int:
        return int(longest(np.array([self.config.frames]), (np.array([6 * 16]), np.array([8 * 16])))[0])


def planner(
    batch: int, dp: int, seed: int = 0, micro: int = 1, parallel: ParallelConfig | None = None, **data: object
) -> StepPlanner:
    options = DataConfig(frames=12, min_frames=3, frame_interval=(1, 3), clips=(2, 12), **data)  # type: ignore[arg-type]
    config = Config(
        data=options,
        train=TrainConfig(global_batch_size=batch, micro_batch_size=micro),
        parallel=parallel or ParallelConfig(),
    )
    return StepPlanner(Videos(options), seed, config, WORK, dp)  # type: ignore[arg-type]


def same(one: StepPlan, other: StepPlan) -> bool:
    return one.rows == other.rows and [one.plans[i] for i in range(len(one.plans))] == [
        other.plans[i] for i in range(len(other.plans))
    ]


@given(
    batch=st.integers(1, 60),
    dp=st.integers(1, 12),
    budget=st.integers(1150, 6000),
    lengths=st.integers(1, 80),
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    buckets=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 1000),
    step=st.integers(0, 20),
)
@settings(max_examples=150, deadline=None)
def test_packed_steps(
    batch: int,
    dp: int,
    budget: int,
    lengths: int,
    tensor: int,
    pipeline: tuple[int, int],
    buckets: int,
    seed: int,
    step: int,
) -> None:
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline[0], virtual_pipeline=pipeline[1])
    made = planner(batch, dp, seed, parallel=layout, pack_tokens=budget, row_lengths=lengths, cost_buckets=buckets)
    plan = made.step(step * batch)
    tokens = WORK.of(plan.plans).tokens
    rows = [row for rank in plan.rows for row in rank]
    assert sorted(sample for row in rows for sample in row.samples) == list(range(batch)) and len(plan.rows) == dp
    counts = {len(rank) for rank in plan.rows}
    assert len(counts) == 1 and (pipeline[1] == 1 or counts.pop() % pipeline[0] == 0)
    assert all(sum(tokens[list(row.samples)]) <= min(budget, row.length) and row.length % tensor == 0 for row in rows)
    assert all(3 <= row.length < budget + tensor for row in rows) and len({row.length for row in rows}) <= lengths
    # A row is at most one step of the ladder longer than its samples.
    assert all(row.length - sum(tokens[list(row.samples)]) < budget / lengths + tensor for row in rows if row.samples)
    assert same(
        plan,
        planner(batch, dp, seed, parallel=layout, pack_tokens=budget, row_lengths=lengths, cost_buckets=buckets).step(
            step * batch
        ),
    )
    # Which samples a step has, and what they cost together, is no matter of the layout.
    other = planner(batch, dp + 1, seed, pack_tokens=budget + 7, cost_buckets=buckets).step(step * batch)
    assert [other.plans[i] for i in range(batch)] == [plan.plans[i] for i in range(batch)]


def test_unpacked_steps_are_in_order() -> None:
    """Six samples a rank in rows of two: rank 1 of 2 has samples 6..11; rows are padded to the layout's multiple."""
    plan = planner(12, 2, micro=2, parallel=ParallelConfig(tensor=4, sequence=True)).step(24)
    assert plan.plans.number.tolist() == list(range(24, 36))
    assert [[row.samples for row in rank] for rank in plan.rows] == [
        [(0, 1), (2, 3), (4, 5)],
        [(6, 7), (8, 9), (10, 11)],
    ]
    tokens = WORK.of(plan.plans).tokens
    for row in itertools.chain(*plan.rows):
        assert row.length % 4 == 0 and 0 <= row.length - tokens[list(row.samples)].sum() < 4


def test_buckets_keep_the_samples_of_their_window() -> None:
    """Three steps of 20 samples have the 60 samples of their window, each in a batch of similar cost; without buckets,
    batches span all costs.
    """
    made, plain = planner(20, 4, cost_buckets=3), planner(20, 4)
    for window in (0, 1):
        steps = [made.plans(60 * window + 20 * i) for i in range(3)]
        assert sorted(n for plans in steps for n in plans.number.tolist()) == list(range(60 * window, 60 * window + 60))
        spreads = [
            [sample_costs(WORK.of(plans).tokens, WORK.of(plans).pairs, made.weights) for plans in some]
            for some in (steps, [plain.plans(0)])
        ]
        bucketed, mixed = ([np.std(costs) / np.mean(costs) for costs in some] for some in spreads)
        assert np.mean(bucketed) < 0.7 * mixed[0]
    # State is the number of consumed samples alone, also for a run whose batch size was another before: this step
    # crosses the window's edge.
    crossing = made.plans(50)
    assert crossing.number.tolist() == [*made.plans(40).number.tolist()[10:], *made.plans(60).number.tolist()[:10]]


def test_costs_are_flops_or_what_was_measured() -> None:
    config = Config()
    channels, work = expected_geometry(config.codec).channels, clip_work((3, 4, 1), 6)
    needs = work_of(config, expected_geometry(config.codec))
    a, b = cost_weights(config, needs)
    assert a * work.tokens + b * work.pairs == pytest.approx(
        linear_flops(config.model, end_weights(config.model, channels), work.tokens)
        + attention_flops(config.model, work.pairs),
        rel=1e-12,
    )
    assert b == attention_flops(config.model, 1)
    measured = replace(config, data=replace(config.data, cost=(2e-6, 3e-11)))
    assert cost_weights(measured, needs) == (2e-6, 3e-11)
    tokens, pairs = np.array([1000, 38_478, 0]), np.array([400_000, 10**9, 0])
    costs = sample_costs(tokens, pairs, (2e-6, 3e-11)).astype(float)
    assert costs[0] / costs[1] == pytest.approx((2e-3 + 12e-6) / (0.076956 + 0.03), rel=1e-7) and costs[2] == 0
    assert np.array_equal(sample_costs(tokens, pairs, (2.0, 3e-5)), costs)
    # Sums of a hundred thousand of the largest stay exact.
    assert 1e5 * float(sample_costs(np.array([10**7]), np.array([10**12]), (0.0, 1.0))[0]) < 2**63


def test_what_cannot_be_planned_is_said_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"data.pack_tokens=1149: must hold the longest sample of this data, 1150 tokens"
    ) as caught:
        planner(8, 2, pack_tokens=1149)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError,
        match="train.global_batch_size=10: must be a multiple of train.micro_batch_size=2 times 4 data parallel ranks",
    ):
        planner(10, 4, micro=2)
    assert planner(10, 4, pack_tokens=1150).step(0).rows


def test_fingerprints_tell_orders_apart() -> None:
    """Layout and packing do not matter; seed, and with buckets their windows, do."""
    base = planner(12, 2).fingerprint
    assert {
        planner(12, 4).fingerprint,
        planner(24, 2).fingerprint,
        planner(12, 2, pack_tokens=2000, row_lengths=3).fingerprint,
    } == {base}
    others = [
        planner(12, 2, 1),
        planner(12, 2, cost_buckets=2),
        planner(24, 2, cost_buckets=2),
        planner(12, 2, cost_buckets=2, cost=(1.0, 0.1)),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 5


def test_estimates_know_packed_rows() -> None:
    """Memory is that of a full row; 40 samples of mean length on 4 ranks fill ceil(10 * tokens / budget) rows of each,
    even ones under an interleaved pipeline of two, and the mean row has the rest of them.
    """
    data = DataConfig(frames=12, frame_interval=(1, 3), clips=(2, 12), pack_tokens=9000)
    config = Config(data=data, train=TrainConfig(global_batch_size=40))
    assert longest_row(config).tokens == pytest.approx(9000)
    work = objective_work(config).expected(typical_frame(config))
    count = -(-10 * work.tokens // 9000)
    assert packed_rows(config, 4) == micro_batches(config, 4) == count
    row = mean_row(config, 4, work)
    assert (
        row.tokens * count == pytest.approx(10 * work.tokens)
        and row.pairs * count == pytest.approx(10 * work.pairs)
        and row.tokens <= 9000
    )
    interleaved = replace(config, parallel=ParallelConfig(pipeline=2, virtual_pipeline=2))
    assert packed_rows(interleaved, 8) == 2 * -(-count // 2)
    plain = replace(config, data=replace(data, pack_tokens=0), train=replace(config.train, micro_batch_size=2))
    assert longest_row(plain).tokens == 2 * 23 * (4 * 4 + 2) and micro_batches(plain, 4) == 5
