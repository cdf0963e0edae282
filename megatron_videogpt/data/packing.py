"""Whole steps from sample numbers: which samples form a step, which rank and row each goes to, and how long the rows
are.

A pure function of (split, seed, configuration, consumed samples, data parallel size): every rank computes the same plan
from the index alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from ..config.derived import require_positions
from ..config.schema import Config
from ..errors import UserError
from .dealing import deal, fill_rows, row_ladder
from .order import bucketed
from .plans import Plans, sample_key
from .sample_work import SampleWork
from .splits import Split

REFERENCE = (
    100_000,
    2_500_000_000,
)  # tokens and pairs whose cost is 2**36: sums over 100,000 samples of 1000 times that stay below 2**63


@dataclass(frozen=True)
class Row:
    """One row of a rank: positions of its samples in the step's plans (none: a blank), and its length in tokens with
    padding.
    """

    samples: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class StepPlan:
    """One step: the plans of its samples, and for each data parallel rank its rows, as many for one as for another."""

    plans: Plans
    rows: tuple[tuple[Row, ...], ...]


class StepPlanner:
    """Plans the steps of a run.

    With `data.pack_tokens` = 0 a step's samples go to the ranks in equal shares, in order, and `train.micro_batch_size`
    of them form a row, padded to a multiple of `parallel.row_multiple`.  Otherwise they are dealt by cost (`deal`,
    `fill_rows`): each rank gets about the same cost in the same number of rows, each of at most `data.pack_tokens`
    tokens and padded to one of at most `data.row_lengths` lengths.  No sample is left out.

    `data.cost_buckets` = W makes batches of samples of similar cost, for which the samples of W steps are looked at
    together (see `order.bucketed` for what that does to their distribution): window w holds the samples w * W * B .. (w
    + 1) * W * B - 1 in another order, B = `train.global_batch_size`.

    Args:
        split: numbered samples.
        seed: of data order, frames and clips.
        config: of the run; batch sizes, data, the model's and the codec's shape, pipeline and row multiple.
        work: of the objective's samples.
        dp_size: data parallel ranks.

    Raises:
        ValueError: one line: a batch that does not divide, a sample longer than `data.pack_tokens`.
    """

    def __init__(self, split: Split, seed: int, config: Config, work: SampleWork, dp_size: int) -> None:
        self.split, self.seed, self.config, self.work, self.dp_size = split, seed, config, work, dp_size
        self.weights = cost_weights(config, work)
        self._windows: OrderedDict[int, Plans] = OrderedDict()
        _check(split, config, work, dp_size)
        layout, data = config.parallel, config.data
        self._row_step = layout.pipeline if layout.virtual_pipeline > 1 else 1
        self.ladder = (
            row_ladder(data.pack_tokens, data.row_lengths, layout.row_multiple, work.blank)
            if data.pack_tokens
            else np.zeros(0, np.int64)
        )

    @property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of all that decides which sample comes when: the split's, the seed and, with cost
        buckets, their windows and costs.
        """
        data, batch = self.config.data, self.config.train.global_batch_size
        windows = (data.cost_buckets, batch, self.work.fingerprint, *self.weights)
        parts = (self.split.fingerprint, self.seed, *(windows if data.cost_buckets else ()))
        return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()

    def step(self, consumed: int) -> StepPlan:
        """The step after ``consumed`` samples."""
        plans = self.plans(consumed)
        counts = self.work.of(plans)
        tokens = counts.tokens
        if not self.config.data.pack_tokens:
            return StepPlan(plans, self._in_order(tokens))
        costs = sample_costs(tokens, counts.pairs, self.weights)
        shares = fill_rows(
            deal(costs, self.dp_size), tokens.tolist(), costs.tolist(), self.config.data.pack_tokens, self._row_step
        )
        sums = [[sum(tokens[row]) if row else self.work.blank for row in rows] for rows in shares]
        lengths = self.ladder[np.searchsorted(self.ladder, sums)]
        return StepPlan(
            plans,
            tuple(
                tuple(Row(tuple(row), int(length)) for row, length in zip(rows, own))
                for rows, own in zip(shares, lengths)
            ),
        )

    def plans(self, consumed: int) -> Plans:
        """The samples of the step after ``consumed`` samples."""
        batch, window = (
            self.config.train.global_batch_size,
            self.config.train.global_batch_size * self.config.data.cost_buckets,
        )
        if not window:
            return self.split.plans(self.seed, np.arange(consumed, consumed + batch))
        # A step crosses a window's edge when an earlier part of the run had another batch size.
        first, last = consumed // window, (consumed + batch - 1) // window
        parts = [
            self._window(number).take(
                np.arange(max(consumed, number * window), min(consumed + batch, (number + 1) * window))
                - number * window
            )
            for number in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else Plans.concatenate(parts)

    def _window(self, number: int) -> Plans:
        """A window's plans in the order in which they are taken; the last two are kept."""
        if number not in self._windows:
            batch = self.config.train.global_batch_size
            size = batch * self.config.data.cost_buckets
            plans = self.split.plans(self.seed, np.arange(number * size, (number + 1) * size))
            counts = self.work.of(plans)
            costs = sample_costs(counts.tokens, counts.pairs, self.weights)
            self._windows[number] = plans.take(bucketed(costs, batch, sample_key(self.seed, number, 0, "window")))
            while len(self._windows) > 2:
                self._windows.popitem(last=False)
        return self._windows[number]

    def _in_order(self, tokens: np.ndarray) -> tuple[tuple[Row, ...], ...]:
        size, multiple = self.config.train.micro_batch_size, self.config.parallel.row_multiple
        lengths = -(-tokens.reshape(self.dp_size, -1, size).sum(axis=2) // multiple) * multiple
        positions = np.arange(len(tokens)).reshape(self.dp_size, -1, size)
        return tuple(
            tuple(Row(tuple(samples), length) for samples, length in zip(rows, own))
            for rows, own in zip(positions.tolist(), lengths.tolist())
        )


def _check(split: Split, config: Config, work: SampleWork, dp_size: int) -> None:
    batch, micro, budget = config.train.global_batch_size, config.train.micro_batch_size, config.data.pack_tokens
    if not budget:
        if batch < 1 or micro < 1 or batch % (micro * dp_size):
            replicas = f"train.micro_batch_size={micro} times {dp_size} data parallel ranks"
            raise UserError(
                f"train.global_batch_size={batch}: must be a multiple of {replicas}; or set data.pack_tokens"
            )
        return
    longest = split.largest_tokens(work.longest)
    if longest > budget:
        raise UserError(
            f"data.pack_tokens={budget}: must hold the longest sample of this data, {longest} tokens; use at "
            "least that, or fewer data.frames"
        )


def check_positions(config: Config, work: SampleWork, *splits: Split) -> None:
    """UserError in one line where the table of learned positions has too few rows for some sample of these splits."""
    if config.model.positions == "learned":
        needed = max(split.largest_tokens(work.positions) for split in splits)
        require_positions(config, needed, "the longest sample of this data")


def cost_weights(config: Config, work: SampleWork) -> tuple[float, float]:
    """Cost of a token and of an attended pair: `data.cost`, or the objective's."""
    return config.data.cost if any(config.data.cost) else work.weights


def sample_costs(tokens: np.ndarray, pairs: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """int64 [n]: weights[0] * tokens + weights[1] * pairs, in units that make sums exact; the same on every machine."""
    unit = (weights[0] * REFERENCE[0] + weights[1] * REFERENCE[1]) / 2**36
    # Each operation is one correctly rounded IEEE operation: no machine fuses two of them across arrays.
    return np.rint((tokens * weights[0] + pairs * weights[1]) / unit).astype(np.int64)
