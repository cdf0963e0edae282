"""What a run consists of, and how it is set up or resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from ..checkpoint.average import Average
from ..checkpoint.checks import (
    check_resumable,
    check_same_codec,
    check_same_condition,
    check_same_data,
    check_same_model,
    check_same_seed,
    check_same_shapes,
)
from ..checkpoint.going_on import check_rates, check_steps, outlook
from ..checkpoint.load import load_checkpoint, load_weights
from ..checkpoint.parts import check_split
from ..checkpoint.saved import Saved, find_checkpoint, newest_checkpoint, set_passed_aside
from ..checkpoint.whole import GO_ON
from ..codec.base import Codec
from ..codec.build import build_codec
from ..codec.geometry import codec_folder
from ..condition.folder import text_width
from ..config.check import check_config
from ..config.schema import Config
from ..config.toml import config_to_toml
from ..convert.side import copy_side_files
from ..data.conditioning import Conditioning
from ..data.locks import write_whole
from ..data.packing import StepPlanner, check_positions
from ..data.sources.open import Source, open_source
from ..errors import RunError, unusable
from ..model.parameters import PREFIX
from ..objective.base import Objective
from ..objective.build import build_objective, work_of
from ..platforms import Platform, activate, world
from ..platforms.together import fail_together, from_rank_zero, gather_results, raise_together, stop_together
from .feed import is_reader
from .logs import open_log
from .networks import Network, build_networks, check_names, follow, saved_parts, turns
from .records import Records
from .resolved import with_encoding, with_precision, with_recompute
from .statistics import Sums, metric_names, read_sums
from .watchdog import JOINING


@dataclass
class State:
    """Where the run is: all that a checkpoint must know beside tensors.

    pending: sum and count of each metric since the last log line, over all ranks; updates: optimizer steps that were
    taken; norms, skipped: of `health.NormGate`; others: the same three of the objective's further networks, by name;
    data: fingerprint of what the order and content of samples follow from; rejected: samples that could not be read, by
    kind.
    """

    step: int = 0
    consumed: int = 0
    updates: int = 0
    pending: Sums = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """Everything a step needs.

    networks: the objective's, the one that is sampled first; average: of its weights, or None; source: where this rank
    reads; text_encoder: fingerprint of what text features are of, "" without; control: a group of all ranks on CPU
    tensors; phase: told what comes next, for the watchdog; records: told of what cannot be written.
    """

    config: Config
    platform: Platform
    codec: Codec
    objective: Objective
    networks: list[Network]
    average: Average | None
    source: Any
    control: Any
    phase: Callable[..., None]
    state: State
    text_encoder: str = ""
    records: Records = field(default_factory=Records)

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.config.train.output)

    @property
    def model(self) -> list[Any]:
        """This rank's wrapped chunks of the network that is sampled."""
        return self.networks[0].model

    @property
    def chunks(self) -> list[Any]:
        """The same without their wrapping."""
        return self.networks[0].chunks

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of the statistics of all turns of a step."""
        return tuple(name for _, turn in turns(self.networks) for name in metric_names(self.objective, turn.label))

    @property
    def wrapped(self) -> list[Any]:
        """The wrapped chunks of all that is trained."""
        return [chunk for network in self.networks if network.optimizer is not None for chunk in network.model]

    @property
    def optimizer(self) -> Any:
        """Of that network."""
        return self.networks[0].optimizer


def _threads(config: Config) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(config.train.threads or max(1, (os.cpu_count() or 1) // local))


def build(config: Config, phase: Callable[..., None]) -> Run:
    """Processes, data, model and optimizer; resumes from the newest complete checkpoint of `train.output`."""
    check_config(config, world.world_size())
    if config.condition.kind == "text":
        # Whoever samples may not have the encoder's folder.
        config = replace(config, condition=replace(config.condition, width=text_width(config.condition)))
    platform = activate(config.train.platform, config.train.adaptor)
    _threads(config)
    phase(JOINING)
    world.start(platform, config.parallel, config.train.timeout_minutes)
    control = world.control_group(config.train.timeout_minutes)
    # Rank 0 is here with the lock of the run's folder: from now on every rank may write into it.
    with fail_together(control, "opening its log"):
        open_log()
    stop_together(control)
    saved = newest_checkpoint(Path(config.train.output), control, config.checkpoint.on_damaged)
    config = with_precision(config, saved, platform, control)
    phase("opening the data")
    with fail_together(control, "loading the codec"):
        codec = build_codec(config.codec).to(platform.device, torch.float32)
    _check_same_codec(config, codec, control)
    config = with_encoding(with_recompute(config, codec.channels, platform, control))
    with fail_together(control, "opening the data"):
        source = open_source(config.data, codec, Conditioning(config.condition)) if is_reader() else None
        if source is not None:
            check_positions(config, work_of(config, codec), source.train, source.validation)
            if source.conditioning.encoder is not None:
                source.conditioning.encoder.to(platform.device)
    text_encoder = from_rank_zero(
        lambda: "" if source is None else source.conditioning.identity, control, "telling the text encoder"
    )
    stop_together(control)
    phase("building the model")
    networks, objective = build_networks(config, codec.channels, platform), build_objective(config)
    check_names(objective, networks)
    with fail_together(control, "describing the weights"):
        for chunks in (networks[0].chunks, *(part.chunks for part in saved_parts(networks))):
            check_split(chunks)
    first, decay = networks[0], config.optimizer.ema_decay
    average = Average(first.chunks, first.optimizer, decay) if decay else None
    state = State(data={"fingerprint": _data_fingerprint(config, source, codec, control)})
    run = Run(config, platform, codec, objective, networks, average, source, control, phase, state, text_encoder)
    stop_together(control)
    _restore(run, saved)
    stop_together(control)
    from_rank_zero(lambda: _record(run), control, "writing config.toml")
    return run


def _data_fingerprint(config: Config, source: Source | None, codec: Codec, control: Any) -> str:
    """What decides which sample has which number, and what it is (`StepPlanner.fingerprint`): the same on every rank,
    or RunError.
    """

    def fingerprint() -> str | None:
        if source is None:
            return None
        work = work_of(config, codec)
        return StepPlanner(
            source.train, config.train.seed, config, work, parallel_state.get_data_parallel_world_size()
        ).fingerprint

    seen = gather_results(fingerprint, control, "planning the steps")
    found = sorted({fingerprint for fingerprint in seen if fingerprint is not None})
    if len(found) > 1:
        raise RunError(
            f"data.path = {config.data.path}: ranks see {len(found)} different data sets there (fingerprints "
            f"{', '.join(text[:12] for text in found)}); "
            "every node needs the same files"
        )
    return str(found[0])


def _restore(run: Run, saved: Saved | None) -> None:
    config = run.config
    resumes = saved is not None
    if saved is None and config.train.init_from:
        saved = find_checkpoint(Path(config.train.init_from), None, run.control, config.checkpoint.on_damaged, GO_ON)
    if saved is None:
        return
    run.phase(f"loading {saved.path}")
    if resumes:
        check_resumable(saved)
        check_steps(saved, config)
        check_same_model(saved, config)
    else:
        check_same_shapes(saved, config)
    check_same_codec(saved, run.codec, run.control)
    starts_prefix = check_same_condition(saved, config, run.text_encoder, resumes)
    if resumes:
        check_same_seed(saved, config)
        check_same_data(saved, config, run.state.data)
        check_rates(saved, config)
        state = load_checkpoint(saved, run.chunks, run.optimizer, run.average, saved_parts(run.networks))
        # Earlier releases did not know of data and rejected.
        run.state = State(
            **{f.name: state[f.name] for f in fields(State) if f.name in state and f.name != "data"},
            data=run.state.data,
        )
        run.state.pending = read_sums(run.state.pending, run.metric_names)
        set_passed_aside(saved, run.control)
    else:
        load_weights(saved.path, run.chunks, fresh=PREFIX if starts_prefix else "")
        run.optimizer.reload_model_params()
        follow(run.networks)
        if run.average is not None:
            run.average.restart()
        from_rank_zero(lambda: copy_side_files(saved.run, run.output), run.control, "copying what travels along")
    if world.is_rank_zero():
        start = f"resumed from {saved.path}: {outlook(saved, config)}" if resumes else f"weights from {saved.path}"
        print(start, flush=True)


def _record(run: Run) -> None:
    """Keep the configuration in the run's folder; that of a finished run stays as it was trained."""
    path = run.output / "config.toml"
    if run.state.step < run.config.train.steps or not path.is_file():
        try:
            run.output.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda partial: partial.write_text(config_to_toml(run.config), encoding="utf-8"))
        except OSError as error:
            raise unusable(path, error) from error


def _check_same_codec(config: Config, codec: Codec, control: Any) -> None:
    """Raise RunError on every rank where some encode with another codec than the others; a collective."""
    mine, first = codec.fingerprint, gather_results(lambda: codec.fingerprint, control, "comparing codecs")[0]
    folder = codec_folder(config.codec)
    where = f"codec.path = {folder}" if folder else f"codec.name = {config.codec.name}"
    other = f"{where}: fingerprint {mine[:12]} there and {first[:12]} on rank 0; every node needs the same codec"
    raise_together("" if mine == first else other, control, "comparing codecs")
