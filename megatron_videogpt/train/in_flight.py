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
from ..platforms import world
from .async_values import AsyncReduction, AsyncValue, DeviceEvent
from .feed import StepData, is_reader
from .health import NormGate, RankTimes, record_skipped
from .meter import Interval, Meter, row_work
from .optimizer import set_learning_rate
from .rejected import RejectedCounts
from .run import Run
from .step import train_step


@dataclass
class LaunchedStep:
    """A step that the device may still work on.

    outcome: gradient norm, whether it was taken and whether anything was scored (0 or 1); limit: of that norm; interval
    and line: of the log line that is due after it, if one is.
    """

    step: int
    outcome: AsyncValue
    limit: float
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
        self.gate = NormGate(run.config.optimizer, run.state.norms, run.state.skipped)
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
        rate = learning_rate(config.optimizer, state.step, config.train.steps)
        set_learning_rate(run.optimizer, rate)
        context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        shards = [row.shard(*context).to(run.platform.device) for row in given.rows]
        run.phase(f"forward, backward and update of step {state.step + 1}", joint=True)
        done = train_step(run.model, run.optimizer, run.objective, shards, config.optimizer.clip_grad, self._limit)
        if run.average is not None:
            run.average.update(done.taken)
        outcome = AsyncValue(torch.stack([done.norm, done.taken.to(done.norm), done.scored.to(done.norm)]))
        self.meter.add(done.totals, row_work(given.rows), waited)
        state.step, state.consumed = state.step + 1, state.consumed + config.train.global_batch_size
        self.times.add(state.step, waited)
        due = state.step % config.logging.every == 0 or state.step == config.train.steps
        line = {**(self.times.report() if due else {}), "learning_rate": rate}
        interval, rejected = (self.meter.close(), self.rejected.start_sum()) if due else (None, None)
        self.pending = LaunchedStep(state.step, outcome, self.gate.limit, given.samples, interval, line, rejected)
        return due

    def _end(self, given: StepData) -> None:
        """Where a rank has no data the run ends; what it did before is recorded, for which all ranks are still here."""
        try:
            self.complete()
        finally:
            given.raise_failure()

    def _limit(self) -> float:
        """The largest gradient norm of the step that is being launched."""
        now = self.run.state.step
        if self.pending is not None:
            self.run.phase(f"forward, backward and update of step {now}, on the device", joint=True)
            self.complete()
            self.run.phase(f"forward, backward and update of step {now + 1}", joint=True)
        return self.gate.limit

    def complete(self) -> None:
        """Take in the numbers of the last launched step: afterwards the run's state is complete, and nothing is on its
        way.

        A step that was skipped is recorded; RunError when there were too many in a row.
        """
        if self.pending is None:
            return
        done, self.pending, state = self.pending, None, self.run.state
        norm, taken, scored = done.outcome.numbers()
        assert self.before is not None
        self.seconds, self.before = self.seconds + done.outcome.event.since(self.before), done.outcome.event
        self.gate.record(norm, bool(taken), bool(scored))
        state.updates, state.norms, state.skipped = state.updates + int(taken), self.gate.norms, self.gate.skipped
        if not taken:
            self._skipped(done, norm, bool(scored))
        if done.interval is not None and done.rejected is not None:
            self.rejected.finish_sum(done.rejected)
            numbers = {**self.meter.describe(done.interval, self.seconds), **self.rejected.metrics()}
            self.log(
                done.step,
                {**numbers, **done.line, "grad_norm": norm, "skipped_steps": float(done.step - state.updates)},
            )
            self.seconds = 0.0

    def _skipped(self, done: LaunchedStep, norm: float, scored: bool) -> None:
        """Name the samples of a step that no rank took, in `skipped.jsonl` and the log; RunError when there were too
        many in a row.
        """
        run = self.run
        mine = [{"name": sample.name, "key": sample.key} for sample in done.samples] if is_reader() else []
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, mine, group=run.control)
        record_skipped(
            run.output, done.step, norm, done.limit, [sample for part in parts for sample in part], world.is_rank_zero()
        )
        # An outage of the storage, in which nothing is scored, is for the limit of bad samples to stop.
        if scored and self.gate.too_many():
            advice = "lower optimizer.lr, or look at the samples named there; the checkpoints before are untouched"
            raise RunError(
                f"step {done.step}: {self.gate.skipped} steps in a row were skipped (optimizer.max_skipped = "
                f"{run.config.optimizer.max_skipped}), the last "
                f"for a gradient norm of {norm:g}; their samples are in {run.output / 'skipped.jsonl'}; {advice}"
            )

    def flush(self) -> None:
        """Land, and move what was counted since the last log line into the run's state: it is then what a checkpoint of
        this step must hold.
        """
        self.complete()
        self.meter.flush()
        self.rejected.finish_sum(self.rejected.start_sum())
