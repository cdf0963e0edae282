"""The training run, top to bottom: set up, loop, finish."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from megatron.core import parallel_state

from ..config.schema import Config
from ..data.clips import Sample
from ..data.loader import Loader
from ..sequence.intervals import attended_pairs
from . import distributed
from .feed import is_reader, share
from .folders import checkpoint_name
from .health import Agreement, Gate, RankTimes, record_skipped
from .meter import Meter
from .metrics import MetricsWriter, Progress, plot_loss
from .optimizer import learning_rate, set_learning_rate, whole_parameters
from .run import Run, build
from .saver import Saver
from .step import train_step
from .validation import Validation


def micro_batches(run: Run) -> Iterator[list[Sample]]:
    """Endless micro-batches of this rank's data parallel share, from the state's consumed samples on."""
    config = run.config
    loader: Loader | None = None
    if is_reader():
        loader = Loader(
            run.source,
            run.codec,
            config.data,
            config.train.seed,
            config.train.global_batch_size,
            config.train.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
            consumed=run.state.consumed,
        )
    try:
        while True:
            yield share(loader.__next__ if loader is not None else None, run.platform.device)
    finally:
        if loader is not None:
            loader.close()


class Stop:
    """SIGTERM, SIGINT and SIGUSR1 (Slurm's warning before the time limit) ask for a checkpoint and a clean end; a second Ctrl-C ends at once.

    The others may come twice: Slurm signals every process of a job, and the launcher passes on what it got.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def done(self) -> None:
        """There is nothing more to save; Python would restore the default, death, while it shuts down."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def train(config: Config, phase: Callable[..., None] = lambda name, limited=True: None) -> None:
    """Train to `train.steps`, resuming what `train.output` holds; raises RunError or ValueError in one line for whatever a user can mend.

    phase: is told what the run does next (see `watchdog.Watchdog`).
    """
    stop = Stop()
    run = build(config, phase)
    writer = MetricsWriter(run.output, config, distributed.is_rank_zero(), resume_step=run.state.step)
    phase("reading the validation samples")
    wanted = config.eval.every or config.eval.predict_every or config.eval.final_scenes
    validation = Validation(run.config, run.source, run.codec, run.objective, run.platform) if wanted else None
    try:
        finished = _loop(run, writer, validation, stop)
        if finished and validation is not None:
            phase("validation after the last step", limited=False)
            with whole_parameters(run.model):
                validation.finish(run.model, writer, run.state.step)
    finally:
        writer.close()
    if distributed.is_rank_zero():
        plot_loss(run.output / "metrics.jsonl", run.output / "loss.png")
    parallel_state.destroy_model_parallel()
    stop.done()


def _loop(run: Run, writer: MetricsWriter, validation: Validation | None, stop: Stop) -> bool:
    """Steps until the end (True) or until somebody asks to stop (False)."""
    config, state, data = run.config, run.state, micro_batches(run)
    meter, gate = Meter(config, run.platform, run.codec.channels, state), Gate(config.optimizer, state.norms, state.skipped)
    times, agreement = RankTimes(config, run.platform, run.control), Agreement(run.control)
    saver = Saver(config, run.chunks, run.optimizer, run.average, run.codec.fingerprint)
    if validation is not None and config.eval.every and state.step == 0:
        run.phase("validation before the first step", limited=False)
        with whole_parameters(run.model):
            validation.measure(run.model, writer, 0)
    with Progress(config.train.steps, state.step, distributed.is_rank_zero()) as progress:
        while state.step < config.train.steps:
            line = _step(run, data, meter, gate, times)
            last, again = state.step == config.train.steps, False
            if state.step % config.logging.every == 0 or last:
                run.phase(f"logging step {state.step}")
                line = {**meter.report(), **times.report(), **line}
                writer.log(state.step, line)
                progress.update(state.step, line)
                again = saver.poll() and config.checkpoint.retries > 0
            if validation is not None and validation.due(state.step):
                run.phase(f"validation after step {state.step}", limited=False)
                with whole_parameters(run.model):
                    validation.during(run.model, writer, state.step)
            asked = agreement.ask(stop.asked)
            if last or asked or again or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                run.phase(f"saving {checkpoint_name(state.step)}")
                meter.flush()
                with whole_parameters(run.model):
                    path = saver.save(asdict(state), must=last or asked, again=again)
            if asked and not last:
                if distributed.is_rank_zero():
                    print(f"stopped at step {state.step} as asked; saved {path}; the same command resumes", flush=True)
                break
    run.phase("completing the last checkpoint")
    saver.finish()
    agreement.close()
    times.close()
    data.close()  # type: ignore[attr-defined]
    return state.step == config.train.steps


def _step(run: Run, data: Iterator[list[Sample]], meter: Meter, gate: Gate, times: RankTimes) -> dict[str, float]:
    """Read, prepare and train on one global batch; advances the run's state and returns what belongs to this step alone."""
    config, state, started = run.config, run.state, time.perf_counter()
    count = config.train.global_batch_size // (parallel_state.get_data_parallel_world_size() * config.train.micro_batch_size)
    run.phase(f"reading data of step {state.step + 1}")
    batches = [next(data) for _ in range(count)]
    rows = [run.objective.prepare(batch, config.parallel.row_multiple) for batch in batches]
    work = [(row.length, attended_pairs(row.intervals)) for row in rows]
    waited = time.perf_counter() - started
    rate = learning_rate(config.optimizer, state.step, config.train.steps)
    set_learning_rate(run.optimizer, rate)
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    shards = [row.shard(*context).to(run.platform.device) for row in rows]
    run.phase(f"forward, backward and update of step {state.step + 1}")
    totals, norm, taken = train_step(run.model, run.optimizer, run.objective, shards, config.optimizer.clip_grad, gate.accept)
    if taken and run.average is not None:
        run.average.update()
    limit = gate.limit
    gate.note(norm, taken)
    state.step, state.consumed, state.updates = state.step + 1, state.consumed + config.train.global_batch_size, state.updates + taken
    state.norms, state.skipped = gate.norms, gate.skipped
    if not taken:
        _skipped(run, gate, norm, limit, [sample for batch in batches for sample in batch])
    meter.add(totals if taken else None, work, time.perf_counter() - started, waited)
    times.add(state.step, waited)
    return {"grad_norm": norm, "learning_rate": rate, "skipped_steps": float(state.step - state.updates)}


def _skipped(run: Run, gate: Gate, norm: float, limit: float, samples: list[Sample]) -> None:
    """Name the samples of a step that no rank took, in `skipped.jsonl` and the log; RunError when there were too many in a row."""
    mine = [{"name": sample.name, "key": sample.key} for sample in samples] if is_reader() else []
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine, group=run.control)
    record_skipped(run.output, run.state.step, norm, limit, [sample for part in parts for sample in part], distributed.is_rank_zero())
    if gate.too_many():
        advice = "lower optimizer.lr, or look at the samples named there; the checkpoints before are untouched"
        raise distributed.RunError(
            f"step {run.state.step}: {gate.skipped} steps in a row were skipped (optimizer.max_skipped = {run.config.optimizer.max_skipped}), the last for a "
            f"gradient norm of {norm:g}; their samples are in {run.output / 'skipped.jsonl'}; {advice}"
        )
