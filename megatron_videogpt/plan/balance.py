"""How good a planned step is: padding, row lengths, and the imbalance that every rank waits for; naive dealing to
compare with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from ..data.packing import Row, StepPlan, StepPlanner
from ..data.plans import Plans
from ..data.sample_work import SampleWork


@dataclass
class DealingStatistics:
    """Several steps of one dealing.  Lists have one entry a step.

    tokens, padded: in all rows, without and with padding; lengths: distinct row lengths of all steps; rows: of each
    rank; imbalance: largest over mean cost of a rank, padding included; row_imbalance: the same of the rows of a rank,
    mean over ranks; bound: what no dealing of these samples can fall below (the costliest sample over that mean, or 1);
    seconds: of planning, of this thread.
    """

    tokens: list[int] = field(default_factory=list)
    padded: list[int] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)
    rows: list[int] = field(default_factory=list)
    imbalance: list[float] = field(default_factory=list)
    row_imbalance: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def padding(self) -> float:
        """Share of all rows' tokens that is padding."""
        return 1 - sum(self.tokens) / sum(self.padded)

    def add(self, step: StepPlan, work: SampleWork, weights: tuple[float, float], seconds: float = 0.0) -> None:
        """Add a step.  work: of its samples; weights: cost of a token and of an attended pair."""
        counts = work.of(step.plans)
        tokens, pairs = counts.tokens, counts.pairs
        costs = np.array(
            [
                [weights[0] * row.length + weights[1] * pairs[list(row.samples)].sum() for row in rows]
                for rows in step.rows
            ]
        )
        sums = costs.sum(axis=1)
        alone = weights[0] * tokens + weights[1] * pairs
        self.tokens.append(int(tokens.sum()))
        self.padded.append(sum(row.length for rows in step.rows for row in rows))
        self.lengths.update(row.length for rows in step.rows for row in rows)
        self.rows.append(costs.shape[1])
        self.imbalance.append(float(sums.max() / sums.mean()))
        self.row_imbalance.append(float((costs.max(axis=1) / costs.mean(axis=1)).mean()))
        self.bound.append(float(max(1.0, alone.max() / sums.mean())))
        self.seconds.append(seconds)


def in_order(plans: Plans, tokens: np.ndarray, ranks: int, budget: int, ladder: np.ndarray) -> StepPlan:
    """Naive dealing of the same samples: equal numbers of consecutive samples to consecutive ranks, filled into rows in
    order, each opened when the one before is full.  ladder: row lengths, ascending.
    """
    shares = []
    for share in np.array_split(np.arange(len(plans)), ranks):
        rows: list[list[int]] = [[]]
        for sample in share.tolist():
            if rows[-1] and sum(tokens[rows[-1]]) + tokens[sample] > budget:
                rows.append([])
            rows[-1].append(sample)
        shares.append(rows)
    count = max(map(len, shares))
    shares = [[*rows, *([[]] * (count - len(rows)))] for rows in shares]
    lengths = [[int(ladder[np.searchsorted(ladder, sum(tokens[row]))]) for row in rows] for rows in shares]
    return StepPlan(
        plans, tuple(tuple(Row(tuple(row), length) for row, length in zip(*pair)) for pair in zip(shares, lengths))
    )


def measure(planner: StepPlanner, steps: Iterable[int]) -> tuple[DealingStatistics, DealingStatistics]:
    """(as configured, naive) dealing of the steps with these numbers."""
    config, work, weights = planner.config, planner.work, planner.weights
    batch, budget = config.train.global_batch_size, config.data.pack_tokens
    # Naive dealing does not sort samples into buckets either.
    plain = StepPlanner(
        planner.split, planner.seed, replace(config, data=replace(config.data, cost_buckets=0)), work, planner.dp_size
    )
    configured, naive = DealingStatistics(), DealingStatistics()
    for number in steps:
        began = time.thread_time()
        step = planner.step(number * batch)
        configured.add(step, work, weights, time.thread_time() - began)
        plans = plain.plans(number * batch)
        tokens = work.of(plans).tokens
        naive.add(
            in_order(plans, tokens, planner.dp_size, budget, planner.ladder) if budget else plain.step(number * batch),
            work,
            weights,
        )
    return configured, naive
