"""Checkpoints with megatron-core's `dist_checkpointing`: any layout saves, any layout loads.

A run's folder holds ``checkpoints/step_00001000/`` (complete ones only: a checkpoint is written as ``.partial`` and renamed), and ``checkpoints/latest``
with the newest one's name, replaced in one move.  Beside the tensors, each has `config.toml` and `state.json` (step, consumed samples, pending
statistics, fingerprint of the codec).  megatron-core's metadata is pickled: load only checkpoints you trust; Hugging Face folders are for exchange.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from ..config.load import config_to_toml, load_config
from ..config.schema import Config
from ..data.codec import Codec
from ..platforms import compat
from .distributed import RunError, is_rank_zero


def checkpoint_root(run: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run / "checkpoints"


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None; raises RunError when `latest` names one that is gone."""
    pointer = checkpoint_root(run) / "latest"
    if not pointer.is_file():
        return None
    path = checkpoint_root(run) / pointer.read_text(encoding="utf-8").strip()
    if not (path / "state.json").is_file():
        raise RunError(f"{pointer} names {path.name}, which is not there or not complete; restore it, or write the name of another checkpoint into {pointer}")
    return path


def find(run: Path, step: int | None = None) -> Path:
    """A run's checkpoint at `step`, or its newest; raises RunError in one line when there is none."""
    if not run.is_dir():
        raise RunError(f"{run}: no such folder; expected the output folder of a training run")
    path = latest(run) if step is None else checkpoint_root(run) / f"step_{step:08d}"
    if path is None or not (path / "state.json").is_file():
        have = ", ".join(sorted(p.name for p in checkpoint_root(run).glob("step_*") if p.is_dir())) or "none"
        raise RunError(f"{run}: no complete checkpoint{'' if step is None else f' of step {step}'}; it has: {have}")
    return path


def checkpoint_config(path: Path) -> Config:
    """The resolved configuration a checkpoint was saved with."""
    return load_config(path / "config.toml")


def check_same_model(path: Path, config: Config) -> None:
    """Raise RunError naming every difference between a checkpoint's model and this run's."""
    saved = checkpoint_config(path)
    differences = [
        f"model.{f.name} is {getattr(saved.model, f.name)} there and {getattr(config.model, f.name)} here"
        for f in dataclasses.fields(saved.model)
        if f.name != "init_std" and getattr(saved.model, f.name) != getattr(config.model, f.name)
    ]
    if saved.train.precision != config.train.precision:
        differences.append(f"train.precision is {saved.train.precision} there and {config.train.precision} here")
    if differences:
        raise RunError(f"{path} is a checkpoint of another model: {'; '.join(differences)}; use its config.toml, or another train.output")


def check_same_codec(path: Path, codec: Codec) -> None:
    """Raise RunError when a checkpoint's model was trained on the latents of another codec: its predictions would decode to noise."""
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))["codec"]
    if saved != codec.fingerprint:
        raise RunError(
            f"{path} was trained with another {codec.name} codec (fingerprint {saved[:12]}, this one has {codec.fingerprint[:12]}); "
            "use the codec it was trained with (codec.path, or the release of this package), or train anew in another train.output"
        )


def _bytes_needed(model: Any) -> int:
    """Rough size of a checkpoint: fp32 main parameters and two moments, and the parameters themselves."""
    return sum(p.numel() * (12 + p.element_size()) for p in model.parameters()) * torch.distributed.get_world_size()


def save(run: Path, model: Any, optimizer: Any, config: Config, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of step ``state["step"]`` and make it the latest; then drop all but the newest `keep` (0 keeps all).

    On failure the partial folder is removed and a RunError with one line is raised on every rank; what was there before stays.
    """
    root, name = checkpoint_root(run), f"step_{state['step']:08d}"
    partial, final = root / f"{name}.partial", root / name
    error = ""
    if is_rank_zero():
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as problem:
            error = str(problem)
    error = _first_error(error)
    if not error:
        module = model.module
        try:
            sharded = {"model": module.sharded_state_dict()}
            sharded["optimizer"] = optimizer.sharded_state_dict(sharded["model"], metadata=compat.OPTIMIZER_FORMAT)
            dist_checkpointing.save(sharded, str(partial), async_sharded_save=False)
        # megatron-core wraps whatever went wrong on any rank (a full disk, a lost mount) in exceptions of several kinds, one of them no Exception.
        except (Exception, CheckpointException) as problem:  # noqa: BLE001  (reported on every rank)
            error = _root_cause(problem)
    error = _first_error(error)
    if not error and is_rank_zero():
        try:
            (partial / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
            _write_durably(partial / "state.json", json.dumps(state))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _write_durably(root / "latest", name)
            _prune(root, keep)
        except OSError as problem:
            error = str(problem)
    error = _first_error(error)
    if error:
        if is_rank_zero():
            shutil.rmtree(partial, ignore_errors=True)
        before = latest(run)
        left = f"the newest complete one is still {before.name}" if before else "there is none yet"
        free, needed = shutil.disk_usage(root.parent).free / 2**20, _bytes_needed(model) / 2**20
        need = f"{free:.1f} MiB of disk space are free and about {needed:.1f} are needed; start again to resume"
        raise RunError(f"checkpoint of step {state['step']} could not be saved to {root}: {error}; {left}; {need}")
    return final


def _first_error(error: str) -> str:
    """The first rank's error message that is not empty, the same on every rank."""
    errors: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(errors, error)
    return next((text for text in errors if text), "")


def _root_cause(problem: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    seen: BaseException = problem
    failures = getattr(problem, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        seen = first[0] if isinstance(first, tuple) else first
    while seen.__cause__ is not None or seen.__context__ is not None:
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return f"{type(seen).__name__}: {' '.join(str(seen).split())[:300]}"


def _write_durably(path: Path, text: str) -> None:
    """Replace a small file in one move, after its bytes are on the disk."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _prune(root: Path, keep: int) -> None:
    if keep:
        for old in sorted(path for path in root.glob("step_*") if path.is_dir() and not path.name.endswith(".partial"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def load_weights(path: Path, module: Any) -> None:
    """Fill a model (any layout) with a checkpoint's weights."""
    loaded = dist_checkpointing.load({"model": module.sharded_state_dict()}, str(path))
    module.load_state_dict(loaded["model"])


def load(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore model and optimizer from a checkpoint of any layout; returns its state (see `save`) but for the codec's fingerprint."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    state.pop("codec")
    module = model.module
    # The template needs moments to describe, and a fresh torch Adam has none.
    compat.seed_optimizer_state(optimizer)
    sharded = {"model": module.sharded_state_dict()}
    sharded["optimizer"] = optimizer.sharded_state_dict(sharded["model"], is_loading=True, metadata=compat.OPTIMIZER_FORMAT)
    loaded = dist_checkpointing.load(sharded, str(path))
    module.load_state_dict(loaded["model"])
    compat.load_optimizer(optimizer, loaded["optimizer"], state["updates"])
    return state
