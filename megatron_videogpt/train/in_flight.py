"""Optimizer steps that a device works on while the host prepares the next one.

The host queues step n's forward and backward pass and then reads the numbers of step n-1, which the device has finished
by then: so it never waits for a device that would have nothing to do meanwhile, and yet the limit of step n's gradient
norm knows all steps before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state

from ..config.schedules import learning_rate
from ..data.plans import Sample
from ..errors import RunError
from ..objective.base import Turn
from ..platforms import world
from ..sequence.row import Row
from .async_values import AsyncReduction, AsyncValue, DeviceEvent
from .feed import StepData, is_reader
from .health import SKIPPED, NormGate, RankTimes, record_skipped
from .meter import Interval, Meter, row_work
from .networks import Network, alone, follow, turns
from .optimizer import set_learning_rate
from .rejected import RejectedCounts
from .run import Run, State
from .statistics import joined
from .step import Step, train_step


@dataclass
class LaunchedStep:
    """A step that the device may still work on.

    outcome: of each network's turn the gradient norm, whether it was taken and whether anything was scored (0 or 1);
    limits: of these norms; interval and line: of the log line that is due after it, if one is.
    """

    step: int
    outcome: AsyncValue
    limits: list[float]
    samples: list[Sample]
    interval: Interval | None
    line: dict[str, float]
    rejected: AsyncReduction | None


class InFlightSteps:
    """The steps of a run.  After `launch`, `step` and `consumed` of the run's state are those of the new step; the
    rest, and its log line, after `land`.

    A step's seconds last from the end of the one before to its own end, by the device's clock; after a pause, from its
    own start.

    log: writes a line, with its step.
    """

    def __init__(self, run: Run, log: Callable[[int, dict[str, float]], None]) -> None:
        self.run, self.log = run, log
        self.meter = Meter(run)
        self.turns = list(turns(run.networks))
        self.gates = [NormGate(network.config.optimizer, *_health(run.state, turn)) for network, turn in self.turns]
        self.times = RankTimes(run.config, run.platform, run.control)
        self.rejected = RejectedCounts(run.control, run.state.rejected)
        self.pending: LaunchedStep | None = None
        self.before: DeviceEvent | None = None
        self.seconds = 0.0

    def launch(self, data: Iterator[StepData]) -> bool:
        """Take in and queue one step; returns whether a log line is due after it."""
        run, config, state, started = self.run, self.run.config, self.run.state, time.perf_counter()
        if self.pending is None:
            self.before = DeviceEvent(run.platform.device)
        run.phase(f"reading data of step {state.step + 1}")
        given = next(data)
        waited = time.perf_counter() - started
        run.phase(f"waiting for other ranks to read data of step {state.step + 1}", joint=True)
        if not given.read_on_all_ranks():
            self._end(given)
        self.rejected.add(given.rejected)
        context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        shards = [row.shard(*context).to(run.platform.device) for row in given.rows]
        run.phase(f"forward, backward and update of step {state.step + 1}", joint=True)
        done = [self._turn(number, shards) for number in range(len(self.turns))]
        if run.average is not None:
            run.average.update(done[0].taken)
        follow(run.networks, {turn.part: one.taken for (_, turn), one in zip(self.turns, done)})
        outcome = AsyncValue(*(torch.stack([x.norm, x.taken.to(x.norm), x.scored.to(x.norm)]) for x in done))
        self.meter.add(joined([one.totals for one in done]), row_work(given.rows), waited, given.encode_time)
        rates = {_named(turn, "learning_rate"): self._rate(network) for network, turn in self.turns}
        state.step, state.consumed = state.step + 1, state.consumed + config.train.global_batch_size
        self.times.add(state.step, waited)
        due = state.step % config.logging.every == 0 or state.step == config.train.steps
        line = {**(self.times.report() if due else {}), **rates}
        limits = [gate.limit for gate in self.gates]
        interval, rejected = (self.meter.close(), self.rejected.start_sum()) if due else (None, None)
        self.pending = LaunchedStep(state.step, outcome, limits, given.samples, interval, line, rejected)
        return due

    def _rate(self, network: Network) -> float:
        """The learning rate of the step that is being launched."""
        return learning_rate(network.config.optimizer, self.run.state.step, self.run.config.train.steps)

    def _turn(self, number: int, shards: list[Row]) -> Step:
        """Queue the step of one trained network."""
        run, (network, turn) = self.run, self.turns[number]
        set_learning_rate(network.optimizer, self._rate(network))
        clip = network.config.optimizer.clip_grad
        with alone(run.networks, network):
            return train_step(
                network.model, network.optimizer, run.objective, shards, clip, lambda: self._limit(number), turn
            )

    def _end(self, given: StepData) -> None:
        """Where a rank has no data the run ends; what it did before is recorded, for which all ranks are still here."""
        try:
            self.complete()
        finally:
            given.raise_failure()

    def _limit(self, number: int) -> float:
        """The largest gradient norm of the step that a network is about to take."""
        now = self.run.state.step
        if self.pending is not None:
            self.run.phase(f"forward, backward and update of step {now}, on the device", joint=True)
            self.complete()
            self.run.phase(f"forward, backward and update of step {now + 1}", joint=True)
        return self.gates[number].limit

    def complete(self) -> None:
        """Take in the numbers of the last launched step: afterwards the run's state is complete, and nothing is on its
        way.

        A step that was skipped is recorded; RunError when there were too many in a row.
        """
        if self.pending is None:
            return
        done, self.pending, state = self.pending, None, self.run.state
        numbers = done.outcome.numbers()
        assert self.before is not None
        self.seconds, self.before = self.seconds + done.outcome.event.since(self.before), done.outcome.event
        line = {}
        for number, (_, turn) in enumerate(self.turns):
            norm, taken, scored = numbers[3 * number : 3 * number + 3]
            self.gates[number].record(norm, bool(taken), bool(scored))
            updates = _remember(state, turn, self.gates[number], int(taken))
            if not taken:
                self._skipped(done, number, norm, bool(scored))
            line[_named(turn, "grad_norm")] = norm
            line[_named(turn, "skipped_steps")] = float(done.step - updates)
        if done.interval is not None and done.rejected is not None:
            self.rejected.finish_sum(done.rejected)
            means = {**self.meter.describe(done.interval, self.seconds), **self.rejected.metrics()}
            self.log(done.step, {**means, **done.line, **line})
            self.seconds = 0.0

    def _skipped(self, done: LaunchedStep, number: int, norm: float, scored: bool) -> None:
        """Name the samples of a step that no rank took, in `skipped.jsonl` and the log; RunError when there were too
        many in a row.
        """
        run, gate, (network, turn) = self.run, self.gates[number], self.turns[number]
        mine = [{"name": sample.name, "key": sample.key} for sample in done.samples] if is_reader() else []
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, mine, group=run.control)
        samples = [sample for part in parts for sample in part]
        if world.is_rank_zero():
            record_skipped(run.output, done.step, norm, done.limits[number], samples, run.records, turn.label)
        # An outage of the storage, in which nothing is scored, is for the limit of bad samples to stop.
        if scored and gate.too_many():
            advice = "lower optimizer.lr, or look at the samples named there; the checkpoints before are untouched"
            of = f" of {turn.label}" if turn.label else ""
            raise RunError(
                f"step {done.step}: {gate.skipped} steps{of} in a row were skipped (optimizer.max_skipped = "
                f"{network.config.optimizer.max_skipped}), the last "
                f"for a gradient norm of {norm:g}; their samples are in {run.output / SKIPPED}; {advice}"
            )

    def flush(self) -> None:
        """Land, and move what was counted since the last log line into the run's state: it is then what a checkpoint of
        this step must hold.
        """
        self.complete()
        self.meter.flush()
        self.rejected.finish_sum(self.rejected.start_sum())


def _named(turn: Turn, name: str) -> str:
    """A number of a turn, as it is logged."""
    return f"{turn.label}_{name}" if turn.label else name


def _health(state: State, turn: Turn) -> tuple[list[float], int]:
    """What a run's state has of a network's gradient norms, and of its steps skipped in a row."""
    if turn.first:
        return state.norms, state.skipped
    other = state.others.get(turn.part, {})
    return other.get("norms", []), other.get("skipped", 0)


def _remember(state: State, turn: Turn, gate: NormGate, taken: int) -> int:
    """Put a network's health into the run's state; returns how many updates it has had."""
    if turn.first:
        state.updates, state.norms, state.skipped = state.updates + taken, gate.norms, gate.skipped
        return state.updates
    updates: int = state.others.get(turn.part, {}).get("updates", 0) + taken
    state.others[turn.part] = {"updates": updates, "norms": gate.norms, "skipped": gate.skipped}
    return updates
