"""The training run, top to bottom: set up, loop, finish."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from ..attention import select
from ..config.check import check_config
from ..config.estimate import training_flops
from ..config.load import config_to_toml
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
from .feed import is_reader, share
from .metrics import MetricsWriter, Progress, peak_tflops, plot_loss
from .optimizer import build_optimizer, learning_rate, set_learning_rate, wrap
from .step import NOISE_BINS, any_rank, describe, reduce_statistics, train_step
from .validation import Validation


@dataclass
class State:
    """Where the run is.  pending: statistics since the last log line, already summed over ranks; updates: optimizer steps that were taken."""

    step: int = 0
    consumed: int = 0
    updates: int = 0
    pending: list[float] = field(default_factory=lambda: [0.0] * (2 + 2 * NOISE_BINS))


@dataclass
class Run:
    """Everything a step needs."""

    config: Config
    platform: Platform
    codec: Codec
    objective: Objective
    model: Any
    optimizer: Any
    source: Any
    state: State

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.config.train.output)


def _threads(config: Config) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(config.train.threads or max(1, (os.cpu_count() or 1) // local))


def build_model(config: Config, channels: int, platform: Platform) -> VideoGPT:
    """This rank's stage of the model with its start values."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    backend, reason = select(config.attention.backend, platform.device.type, dtype, config.model.head_dim)
    if distributed.is_rank_zero():
        print(f"attention: {backend} ({reason})", flush=True)
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    model = VideoGPT(config, channels, platform, backend, pre_process=first, post_process=last)
    initialise(model, config.model, channels, config.train.seed)
    return model


def build(config: Config) -> Run:
    """Processes, data, model and optimizer; resumes from the newest complete checkpoint of `train.output`."""
    check_config(config, distributed.world_size())
    platform = activate(config.train.platform)
    _threads(config)
    distributed.start(platform, config.parallel, config.train.timeout_minutes)
    codec = build_codec(config.codec).to(platform.device, torch.float32)
    source = open_source(config.data, codec) if is_reader() else None
    model = wrap(build_model(config, codec.channels, platform))
    run = Run(config, platform, codec, build_objective(config), model, build_optimizer(config, model), source, State())
    _restore(run)
    if distributed.is_rank_zero():
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
    return run


def _restore(run: Run) -> None:
    config = run.config
    path = checkpoint.latest(run.output)
    if path is not None:
        checkpoint.check_same_model(path, config)
        checkpoint.check_same_codec(path, run.codec)
        run.state = State(**checkpoint.load(path, run.model, run.optimizer))
    elif config.train.init_from:
        path = checkpoint.find(Path(config.train.init_from))
        checkpoint.check_same_model(path, config)
        checkpoint.check_same_codec(path, run.codec)
        checkpoint.load_weights(path, run.model.module)
        run.optimizer.reload_model_params()
    if path is not None and distributed.is_rank_zero():
        print(f"{'resumed from' if run.state.step else 'weights from'} {path}", flush=True)


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
    """SIGTERM and SIGINT ask for a checkpoint and a clean end; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def train(config: Config) -> None:
    """Train to `train.steps`, resuming what `train.output` holds; raises RunError or ValueError in one line for whatever a user can mend."""
    stop = Stop()
    run = build(config)
    writer = MetricsWriter(run.output, config, distributed.is_rank_zero(), resume_step=run.state.step)
    wanted = config.eval.every or config.eval.predict_every or config.eval.final_scenes
    validation = Validation(run.config, run.source, run.codec, run.objective, run.platform) if wanted else None
    try:
        finished = _loop(run, writer, validation, stop)
        if finished and validation is not None:
            validation.finish(run.model.module, writer, run.state.step)
    finally:
        writer.close()
    if distributed.is_rank_zero():
        plot_loss(run.output / "metrics.jsonl", run.output / "loss.png")
    parallel_state.destroy_model_parallel()


def _loop(run: Run, writer: MetricsWriter, validation: Validation | None, stop: Stop) -> bool:
    """Steps until the end (True) or until somebody asks to stop (False)."""
    config, state, data = run.config, run.state, micro_batches(run)
    meter = Meter(run)
    if validation is not None and config.eval.every and state.step == 0:
        validation.measure(run.model, writer, 0)
    with Progress(config.train.steps, state.step, distributed.is_rank_zero()) as progress:
        while state.step < config.train.steps:
            line = _step(run, data, meter)
            last = state.step == config.train.steps
            if state.step % config.logging.every == 0 or last:
                line = {**meter.report(), **line}
                writer.log(state.step, line)
                progress.update(state.step, line)
            if validation is not None:
                validation.during(run.model, writer, state.step)
            asked = any_rank(stop.asked, run.platform.device)
            if last or asked or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                meter.flush()
                path = checkpoint.save(run.output, run.model, run.optimizer, config, {**vars(state), "codec": run.codec.fingerprint}, config.checkpoint.keep)
            if asked and not last:
                if distributed.is_rank_zero():
                    print(f"stopped at step {state.step} as asked; saved {path}; the same command resumes", flush=True)
                return False
    return True


def _step(run: Run, data: Iterator[list[Sample]], meter: Meter) -> dict[str, float]:
    """Read, prepare and train on one global batch; advances the run's state and returns what belongs to this step alone."""
    config, state, started = run.config, run.state, time.perf_counter()
    count = config.train.global_batch_size // (parallel_state.get_data_parallel_world_size() * config.train.micro_batch_size)
    rows = [run.objective.prepare(next(data), config.parallel.tensor) for _ in range(count)]
    work = [(row.length, attended_pairs(row.intervals)) for row in rows]
    waited = time.perf_counter() - started
    rate = learning_rate(config.optimizer, state.step, config.train.steps)
    set_learning_rate(run.optimizer, rate)
    totals, norm, taken = train_step(run.model, run.optimizer, run.objective, [row.to(run.platform.device) for row in rows])
    if not math.isfinite(norm):
        advice = "lower optimizer.lr, or look at the samples of this step; the last checkpoint is untouched"
        raise distributed.RunError(f"step {state.step + 1}: the gradient norm is {norm}; {advice}")
    state.step, state.consumed, state.updates = state.step + 1, state.consumed + config.train.global_batch_size, state.updates + taken
    meter.add(totals, work, time.perf_counter() - started, waited)
    return {"grad_norm": norm, "learning_rate": rate}


class Meter:
    """Sums statistics, work and time between log lines; nothing here waits for the device until `report`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.peak = run.config.logging.peak_tflops or peak_tflops(run.platform.device_name)
        self._clear()

    def _clear(self) -> None:
        self.totals: Tensor | None = None
        self.tokens = self.pairs = self.steps = 0
        self.seconds = self.waited = 0.0

    def add(self, totals: Tensor, work: list[tuple[int, int]], seconds: float, waited: float) -> None:
        """One step of this rank."""
        self.totals = totals if self.totals is None else self.totals + totals
        self.tokens += sum(tokens for tokens, _ in work)
        self.pairs += sum(pairs for _, pairs in work)
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + 1

    def flush(self) -> None:
        """Move this rank's statistics into the run's state, summed over ranks, so that a checkpoint holds them."""
        if self.totals is not None:
            reduced = reduce_statistics(self.totals).tolist()
            self.run.state.pending = [a + b for a, b in zip(self.run.state.pending, reduced)]
            self.totals = None

    def report(self) -> dict[str, float]:
        """Means since the last report, over all ranks."""
        self.flush()
        state, config = self.run.state, self.run.config
        named = describe(torch.tensor(state.pending, dtype=torch.float64))
        state.pending = [0.0] * len(state.pending)
        replicas = parallel_state.get_data_parallel_world_size()
        devices = torch.distributed.get_world_size()
        flops = training_flops(config.model, self.run.codec.channels, self.tokens * replicas, self.pairs * replicas)
        named["tokens_per_second"] = self.tokens * replicas / self.seconds
        named["step_time"], named["data_wait"] = self.seconds / self.steps, self.waited / self.steps
        named["tflops_per_device"] = flops / self.seconds / devices / 1e12
        named["memory_peak_gib"] = self.run.platform.memory_peak() / 2**30
        if self.peak:
            named["mfu"] = named["tflops_per_device"] / self.peak
        self._clear()
        return named
