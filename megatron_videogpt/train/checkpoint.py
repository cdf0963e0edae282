"""Checkpoints with megatron-core's `dist_checkpointing`: any layout saves, any layout loads.  Writing them is in `saver.py`.

A run's folder holds ``checkpoints/step_00001000/``, complete ones only: a checkpoint is written as ``.partial`` and renamed when all of it is on
the disk, and a run resumes from the newest.  Beside the tensors (weights, optimizer, average of the weights) each has `config.toml` and
`state.json` (step, consumed samples, pending statistics, seed, fingerprints of codec and data; `weights_only` where there is no optimizer).
megatron-core's metadata is pickled: load only checkpoints you trust; Hugging Face folders are for exchange.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch import nn

from ..config.load import load_config
from ..config.schema import Config
from ..data.codec import Codec
from ..platforms import compat
from . import ema
from .distributed import RunError, is_rank_zero
from .folders import checkpoint_name, checkpoint_root, complete, latest, read_state

log = logging.getLogger(__name__)

DECIDING = tuple(
    """source mixture frames min_frames frame_interval clips longest_side size_multiple min_side max_aspect validation_fraction cost_buckets max_video_mb
    max_video_frames max_megapixels physics""".split()
)
"""Options of the data section that decide which sample has which number, and what it is."""


def find(run: Path, step: int | None = None) -> Path:
    """A run's checkpoint at `step`, or its newest; raises RunError in one line when there is none."""
    if not run.is_dir():
        raise RunError(f"{run}: no such folder; expected the output folder of a training run")
    path = latest(run) if step is None else checkpoint_root(run) / checkpoint_name(step)
    if path is None or path not in complete(run):
        have = ", ".join(path.name for path in complete(run)) or "none"
        raise RunError(f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; it has: {have}")
    return path


def checkpoint_config(path: Path) -> Config:
    """The resolved configuration a checkpoint was saved with."""
    return load_config(path / "config.toml")


def check_same_model(path: Path, config: Config) -> None:
    """Raise RunError naming every difference between a checkpoint's model and this run's."""
    saved = checkpoint_config(path)
    # 0 key/value heads stands for as many as there are query heads.
    there, here = (dataclasses.replace(model, num_query_groups=model.kv_heads) for model in (saved.model, config.model))
    differences = [
        f"model.{f.name} is {getattr(there, f.name)} there and {getattr(here, f.name)} here"
        for f in dataclasses.fields(there)
        if f.name != "init_std" and getattr(there, f.name) != getattr(here, f.name)
    ]
    if saved.train.precision != config.train.precision:
        differences.append(f"train.precision is {saved.train.precision} there and {config.train.precision} here")
    if differences:
        raise RunError(f"{path} is a checkpoint of another model: {'; '.join(differences)}; use its config.toml, or another train.output")


def check_same_codec(path: Path, codec: Codec) -> None:
    """Raise RunError when a checkpoint's model was trained on the latents of another codec: its predictions would decode to noise.

    One that was converted without its VAE does not say.
    """
    saved = read_state(path)["codec"]
    if saved and saved != codec.fingerprint:
        raise RunError(
            f"{path} was trained with another {codec.name} codec (fingerprint {saved[:12]}, this one has {codec.fingerprint[:12]}); "
            "use the codec it was trained with (codec.path, or the release of this package), or train anew in another train.output"
        )


def check_resumable(path: Path) -> None:
    """Raise RunError for a checkpoint of weights alone, which `tools/convert_checkpoint.py` makes: there is no optimizer to go on with."""
    if read_state(path).get("weights_only"):
        raise RunError(
            f"{path} holds weights without an optimizer, so training cannot go on in that folder; "
            f"start another run from them: train.init_from={path.parent.parent} and another train.output"
        )


def check_same_seed(path: Path, config: Config) -> None:
    """Raise RunError when a run would go on with other random numbers: all of them come from the seed and the count of consumed samples."""
    saved = read_state(path)["seed"]
    if saved != config.train.seed:
        raise RunError(
            f"train.seed = {config.train.seed}: {path} was saved with seed {saved}, which decides the order of its data; "
            f"use train.seed={saved}, or start another run from its weights (train.init_from={path.parent.parent} and another train.output)"
        )


def check_same_data(path: Path, config: Config, data: dict[str, Any]) -> None:
    """Raise RunError when a run would go on with other samples than it was saved with (`run.State.data`); only warn with `data.allow_changed`.

    Checkpoints of earlier releases do not say.
    """
    saved = (read_state(path).get("data") or data)["fingerprint"]
    if saved == data["fingerprint"]:
        return
    before = checkpoint_config(path).data
    options = [name for name in DECIDING if getattr(before, name) != getattr(config.data, name)]
    changes = [f"data.{name} is {getattr(before, name)} there and {getattr(config.data, name)} here" for name in options]
    prints = f"fingerprint {saved[:12]} there, {data['fingerprint'][:12]} here"
    what = f"since it was saved, {'; '.join(changes) or 'the data set has changed: its files, or how they are cut into samples'} ({prints})"
    if not config.data.allow_changed:
        raise RunError(
            f"{path}: {what}: samples would come twice or not at all; use the data and options of its config.toml, start another run from its weights "
            f"(train.init_from={path.parent.parent} and another train.output), or go on regardless with data.allow_changed=true"
        )
    if is_rank_zero():
        log.warning("%s: %s; data.allow_changed=true goes on regardless", path, what)


def sharded_weights(chunks: Sequence[Any]) -> dict[str, Any]:
    """megatron-core's description of this rank's weights, one entry per model chunk (without its wrapping)."""
    return {f"chunk{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}


def load_weights(path: Path, chunks: Sequence[nn.Module], average: bool = False) -> None:
    """Fill a model (any layout) with a checkpoint's weights, or with their moving average.  Raises RunError when there is no average."""
    weights = sharded_weights(chunks)
    if not average:
        loaded = dist_checkpointing.load({"model": weights}, str(path))["model"]
        for chunk, values in zip(chunks, loaded.values()):
            chunk.load_state_dict(values)
        return
    if not read_state(path)["ema"]:
        raise RunError(f"{path} has no moving average of the weights; train with optimizer.ema_decay (for example 0.9999), or use the weights themselves")
    ema.use(chunks, dist_checkpointing.load({"ema": ema.template(chunks, weights)}, str(path))["ema"])


def load(path: Path, chunks: Sequence[nn.Module], optimizer: Any, average: ema.Average | None) -> dict[str, Any]:
    """Restore a run from a checkpoint of any layout; returns its `state.json`.

    Where the checkpoint has no average of the weights but the run keeps one, it starts from the loaded weights.
    """
    state = read_state(path)
    # The template needs moments to describe, and a fresh torch Adam has none.
    compat.seed_optimizer_state(optimizer)
    weights = sharded_weights(chunks)
    sharded = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading=True, metadata=compat.OPTIMIZER_FORMAT)}
    if average is not None and state["ema"]:
        sharded["ema"] = ema.template(chunks, weights)
    loaded = dist_checkpointing.load(sharded, str(path))
    for chunk, values in zip(chunks, loaded["model"].values()):
        chunk.load_state_dict(values)
    compat.load_optimizer(optimizer, loaded["optimizer"], state["updates"])
    if average is not None:
        average.restore(loaded["ema"]) if state["ema"] else average.restart()
    return state
