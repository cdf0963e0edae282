"""The training run, top to bottom: set up, loop, finish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from ..attention import select
from ..config.check import check_config
from ..config.load import config_to_toml
from ..config.memory import resolve_recompute
from ..config.schema import Config
from ..data.clips import Sample
from ..data.codec import Codec, build_codec
from ..data.index import open_source
from ..data.loader import Loader
from ..model.init import initialise
from ..model.videogpt import VideoGPT
from ..objective import Objective, build_objective
from ..platforms import Platform, activate
from ..sequence.intervals import attended_pairs
from . import checkpoint, distributed
from .ema import Average
from .feed import is_reader, share
from .health import Agreement, Gate, RankTimes, record_skipped
from .meter import Meter
from .metrics import MetricsWriter, Progress, plot_loss
from .optimizer import build_optimizer, learning_rate, set_learning_rate, whole_parameters, wrap
from .saver import Saver
from .step import NOISE_BINS, train_step
from .validation import Validation


@dataclass
class State:
    """Where the run is: all that a checkpoint must know beside tensors.

    pending: statistics since the last log line, already summed over ranks; updates: optimizer steps that were taken; norms, skipped: of `health.Gate`.
    """

    step: int = 0
    consumed: int = 0
    updates: int = 0
    pending: list[float] = field(default_factory=lambda: [0.0] * (2 + 2 * NOISE_BINS))
    norms: list[float] = field(default_factory=list)
    skipped: int = 0


@dataclass
class Run:
    """Everything a step needs.

    model: this rank's wrapped chunks; average: of the weights, or None; control: a group of all ranks on CPU tensors; phase: told what comes next, for
    the watchdog.
    """

    config: Config
    platform: Platform
    codec: Codec
    objective: Objective
    model: list[Any]
    optimizer: Any
    average: Average | None
    source: Any
    control: Any
    phase: Callable[..., None]
    state: State

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.config.train.output)

    @property
    def chunks(self) -> list[VideoGPT]:
        """This rank's model chunks without their wrapping."""
        return [chunk.module for chunk in self.model]


def _threads(config: Config) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(config.train.threads or max(1, (os.cpu_count() or 1) // local))


def build_model(config: Config, channels: int, platform: Platform) -> list[VideoGPT]:
    """This rank's stage of the model with its start values: one chunk, or `parallel.virtual_pipeline` of them."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    backend, reason = select(config.attention.backend, platform.device.type, dtype, config.model.head_dim)
    if distributed.is_rank_zero():
        print(f"attention: {backend} ({reason})", flush=True)
    chunks = [VideoGPT(config, channels, platform, backend, chunk) for chunk in range(config.parallel.virtual_pipeline)]
    for chunk in chunks:
        initialise(chunk, config.model, channels, config.train.seed)
    return chunks


def build(config: Config, phase: Callable[..., None]) -> Run:
    """Processes, data, model and optimizer; resumes from the newest complete checkpoint of `train.output`."""
    check_config(config, distributed.world_size())
    platform = activate(config.train.platform)
    _threads(config)
    phase("joining the process groups")
    distributed.start(platform, config.parallel, config.train.timeout_minutes)
    control = distributed.control_group(config.train.timeout_minutes)
    phase("building the model")
    codec = build_codec(config.codec).to(platform.device, torch.float32)
    config = _with_recompute(config, codec.channels, platform)
    source = open_source(config.data, codec) if is_reader() else None
    model = wrap(config, build_model(config, codec.channels, platform))
    optimizer = build_optimizer(config, model)
    average = Average([chunk.module for chunk in model], optimizer, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    run = Run(config, platform, codec, build_objective(config), model, optimizer, average, source, control, phase, State())
    _restore(run)
    if distributed.is_rank_zero():
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
    return run


def _with_recompute(config: Config, channels: int, platform: Platform) -> Config:
    """`parallel.recompute=auto` resolved for this device's memory."""
    memory = config.parallel.memory_gb * 1e9 or platform.memory_total()
    try:
        resolved = resolve_recompute(config, distributed.world_size(), channels, memory)
    except ValueError as error:
        raise distributed.RunError(str(error)) from None
    if resolved is not config and distributed.is_rank_zero():
        layers = f", {resolved.parallel.recompute_layers} layers of each pipeline rank" if resolved.parallel.recompute_layers else ""
        print(f"recompute: {resolved.parallel.recompute}{layers} (the least that should fit {memory / 1e9:.1f} GB)", flush=True)
    return resolved


def _restore(run: Run) -> None:
    config = run.config
    path = checkpoint.latest(run.output)
    resumes = path is not None
    if not resumes and config.train.init_from:
        path = checkpoint.find(Path(config.train.init_from))
    if path is None:
        return
    run.phase(f"loading {path}")
    checkpoint.check_same_model(path, config)
    checkpoint.check_same_codec(path, run.codec)
    if resumes:
        checkpoint.check_same_seed(path, config)
        state = checkpoint.load(path, run.chunks, run.optimizer, run.average)
        run.state = State(**{f.name: state[f.name] for f in fields(State)})
    else:
        checkpoint.load_weights(path, run.chunks)
        run.optimizer.reload_model_params()
        if run.average is not None:
            run.average.restart()
    if distributed.is_rank_zero():
        print(f"{'resumed from' if resumes else 'weights from'} {path}", flush=True)


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


def train(config: Config, phase: Callable[..., None] = lambda name: None) -> None:
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
                run.phase(f"saving {checkpoint.checkpoint_name(state.step)}")
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
