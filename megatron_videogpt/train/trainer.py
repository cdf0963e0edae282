"""The training run, top to bottom: set up, loop, finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

from megatron.core import parallel_state
from rich.console import Console

from .. import signals
from ..checkpoint.folders import checkpoint_name
from ..checkpoint.save import Saver
from ..codec.sharing import shares_encoding
from ..config.schedules import kept_steps
from ..config.schema import Config
from ..data.loader import Loader
from ..errors import Stopped
from ..model.ahead import planner
from ..objective.build import work_of
from ..platforms import world
from ..platforms.together import fail_together, stop_together
from .callbacks import FAILURE, Callbacks, callbacks_of
from .feed import StepData, host_group, is_reader, read_with_status, side_stream
from .garbage import collected_every
from .health import AnyRank
from .in_flight import InFlightSteps
from .metrics import MetricsWriter
from .networks import saved_parts
from .optimizer import whole_parameters
from .prefetch import Prefetcher
from .progress import Progress, tell_validation
from .records import Records
from .rejected import REJECTED, record_left_out, writes_rejected
from .run import Run, build
from .sharing import step_data
from .validation import Validation


def prefetch_steps(run: Run) -> Prefetcher[StepData]:
    """This rank's data parallel share of the steps that are left, from the state's consumed samples on."""
    config = run.config
    # Made here and not in the thread that reads: making a group is a collective of all ranks, and only the main thread
    # can set signals for processes.
    group, everybody = host_group(config.train.timeout_minutes), world.control_group(config.train.timeout_minutes)
    beside = side_stream(run.platform.device)
    planned = planner([chunk for network in run.networks for chunk in network.chunks], run.platform.device)
    loader: Loader | None = None
    with fail_together(run.control, "starting to read data"):
        if is_reader():
            loader = Loader(
                run.source,
                run.codec,
                config,
                work_of(config, run.codec),
                parallel_state.get_data_parallel_rank(),
                parallel_state.get_data_parallel_world_size(),
                consumed=run.state.consumed,
                rejected_file=run.output / REJECTED,
                write_rejected=writes_rejected(run.records),
                encodes=not shares_encoding(config),
            )
    try:
        stop_together(run.control)
    except Stopped:
        if loader is not None:
            loader.close()
        raise

    def read() -> StepData:
        with beside():
            data = step_data(loader, run.codec, group, run.objective)
            return replace(data, rows=[planned(row) for row in data.rows])

    def steps() -> Iterator[StepData]:
        try:
            for step in range(run.state.step, config.train.steps):
                yield read_with_status(read, everybody, run.control, f"reading the data of step {step + 1}")
        finally:
            if loader is not None:
                loader.close()

    return Prefetcher(steps())


def train(
    config: Config,
    phase: Callable[..., None] = lambda name, **options: None,
    records: Records | None = None,
) -> None:
    """Train to `train.steps`, resuming what `train.output` holds; raises UserError in one line for whatever a user can
    mend.

    phase: is told what the run does next (see `watchdog.Watchdog`); records: told of what cannot be written.

    SIGTERM, SIGINT and SIGUSR1 (Slurm's warning before the time limit) ask any rank for a checkpoint and a clean end of
    all; before the first step they end it with Stopped.  They may come twice: Slurm signals every process of a job, and
    the launcher passes on what it got.  But a second Ctrl-C ends at once.
    """
    signals.remember()
    signals.stop_alone()
    run = build(config, phase)
    run.records = records or run.records
    with fail_together(run.control, "opening the run's records"):
        writer = MetricsWriter(
            run.output, config, world.is_rank_zero(), run.state.step, run.objective.metrics, run.records
        )
        record_left_out(run, writer)
    phase("reading the validation samples")
    wanted = config.eval.every or config.eval.predict_every or config.eval.final_scenes
    validation = Validation(run) if wanted else None
    callbacks = callbacks_of(run)
    try:
        finished = _loop(run, writer, validation, callbacks)
        if finished and validation is not None:
            phase("validation after the last step", limited=False)
            with whole_parameters(run.wrapped):
                _validated(run, callbacks, validation.finish(run.model, writer, run.state.step))
        callbacks.on_train_end()
    finally:
        writer.close()
    writer.curve(f"{run.objective.loss_label} per {run.objective.unit}", run.objective.metrics)
    parallel_state.destroy_model_parallel()
    signals.done()


def _loop(run: Run, writer: MetricsWriter, validation: Validation | None, callbacks: Callbacks) -> bool:
    """Steps until the end (True) or until somebody asks to stop, or a callback has failed (False)."""
    config, state = run.config, run.state
    # First: it refuses what it cannot do, and nobody must read ahead then.
    parts = saved_parts(run.networks)
    told = run.codec.fingerprint, run.control, parts, run.text_encoder
    saver = Saver(config, run.chunks, run.optimizer, run.average, *told, callbacks.on_save)
    callbacks.on_train_begin()
    data, agreement = prefetch_steps(run), AnyRank(run.control)
    if validation is not None and config.eval.every and state.step == 0:
        run.phase("validation before the first step", limited=False)
        with whole_parameters(run.wrapped):
            _validated(run, callbacks, validation.measure(run.model, writer, 0))
    bar = Progress(config.train.steps, state.step, world.is_rank_zero())
    with bar as progress, collected_every(config.train.gc_every) as collect:

        def log(step: int, line: dict[str, float]) -> None:
            writer.log(step, line)
            progress.update(step, line)
            callbacks.on_log(step, line)

        steps, kept = InFlightSteps(run, log), kept_steps(config.optimizer, config.train.steps)
        while state.step < config.train.steps:
            logged = steps.launch(data)
            collect(state.step)
            callbacks.on_step_end(state.step)
            last, again = state.step == config.train.steps, False
            if logged:
                again = saver.poll() and config.checkpoint.retries > 0
            if validation is not None and validation.due(state.step):
                steps.complete()
                run.phase(f"validation after step {state.step}", limited=False)
                with whole_parameters(run.wrapped):
                    numbers = validation.during(run.model, writer, state.step)
                    _validated(run, callbacks, numbers, progress.console)
            asked = agreement.ask(max(bool(signals.asked()), callbacks.wish))
            due = state.step in kept or (config.checkpoint.every and state.step % config.checkpoint.every == 0)
            if last or asked or again or due:
                steps.flush()
                run.phase(f"saving {checkpoint_name(state.step)}")
                with whole_parameters(run.wrapped):
                    path = saver.save(asdict(state), must=last or bool(asked), again=again)
            if asked and not last:
                callbacks.ends(asked)
                if world.is_rank_zero() and asked != FAILURE:
                    by = callbacks.who_asked
                    print(f"stopped at step {state.step} as {by}; saved {path}; the same command resumes", flush=True)
                break
    run.phase("completing the last checkpoint")
    saver.finish()
    agreement.close()
    steps.times.close()
    data.close()
    return state.step == config.train.steps


def _validated(run: Run, callbacks: Callbacks, numbers: dict[str, float], console: Console | None = None) -> None:
    """Tell of a validation."""
    if world.is_rank_zero():
        tell_validation(run.state.step, run.config.train.steps, numbers, console)
    callbacks.on_evaluate(run.state.step, numbers)
