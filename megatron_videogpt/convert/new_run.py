"""Writing a run's folder from what `ingest` opened: a checkpoint of weights alone, in a chosen layout, and what travels
along.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import dist_checkpointing, parallel_state
from torch import Tensor

from ..checkpoint.folders import checkpoint_name, checkpoint_root
from ..checkpoint.whole import seal
from ..codec.build import build_codec
from ..codec.options import CodecConfig
from ..config.check import find_problems
from ..config.load import ConfigError
from ..config.schema import Config, ParallelConfig
from ..config.toml import config_to_toml
from ..errors import UserError
from ..model.parameters import Parameter
from ..model.tensors import from_hf, shard
from .ingest import Source
from .settings import folder_config
from .sharded import Weights, described, empty_states, held_by
from .side import NAME, Side, write_side
from .standalone import vae_files
from .tensor_files import Entry

Progress = Callable[[int], None]
"""Told how many more bytes are done."""


class Filling(Protocol):
    """What fills a checkpoint: `ingest.Source`, or a `mapped.MappedSource`."""

    @property
    def entries(self) -> tuple[Parameter, ...]: ...
    @property
    def checkpoint_dtype(self) -> torch.dtype: ...
    def stored(self, key: str) -> torch.dtype: ...
    def tensor(self, entry: Parameter) -> Tensor: ...
    def side_entries(self) -> list[Entry]: ...


def checkpoint_of(run: Path) -> Path:
    """Where the weights of a converted run lie."""
    return checkpoint_root(run) / checkpoint_name(0)


def run_config(source: Source, codec: CodecConfig, output: Path, tensor: int, pipeline: int) -> Config:
    """The configuration of the run that a folder becomes; ConfigError where the layout does not fit the model."""
    config = folder_config(source.folder.path, codec)
    precision = "bf16" if source.checkpoint_dtype is torch.bfloat16 else "fp32"
    train = replace(config.train, output=str(output), precision=precision, init_from="")
    config = replace(config, parallel=ParallelConfig(tensor=tensor, pipeline=pipeline), train=train)
    # Data and batches are questions for who trains.
    problems = [line for line in find_problems(config, None) if line.startswith(("model.", "parallel."))]
    if problems:
        raise ConfigError(problems)
    return config


def write_checkpoint(source: Filling, config: Config, path: Path, progress: Progress) -> None:
    """Save this process's share of the weights; a collective over exactly the processes of the layout.

    Parameters are read one at a time, and none is held twice: tensors that own their memory are not copied on the way
    to the disk.
    """
    rank, stage = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    weights: dict[str, Any] = {}
    for entry in held_by(config, stage):
        whole = from_hf(entry, source.tensor(entry), config.model)
        part = _own(shard(entry, whole, rank, config.parallel.tensor).to(source.checkpoint_dtype))
        weights[entry.name] = described(entry, part, config, rank)
        progress(whole.numel() * source.stored(entry.hf).itemsize)
    dist_checkpointing.save({"model": weights, "states": empty_states(config, stage, rank)}, str(path))


def _own(tensor: Tensor) -> Tensor:
    """The same values in memory of exactly their size."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def finish(source: Source, config: Config, partial: Path, vae: Path | None, progress: Progress) -> None:
    """Write everything beside the weights of a run's folder, and read all of it back.

    Raises ValueError where what lies on the disk is not what the folder holds.
    """
    files = [
        (source.folder.path / name, name) for name in source.folder.carried() if vae is None or name.parts[0] != "vae"
    ]
    if vae is not None:
        files += [(path, Path("vae") / path.name) for path in vae_files(vae)]
    facts = {
        "config": source.folder.config,
        "hint_ids": list(source.hint_ids),
        "dtypes": source.dtypes(),
        "format": "phi3" if source.stock else "videogpt",
        "license": license_of(source.folder.path),
    }
    write_side(partial, facts, source.side_entries(), files, progress)
    known = config.codec.name == "tiny" or bool(config.codec.path)
    fingerprint = build_codec(config.codec).fingerprint if known else ""
    if config.codec.path:
        config = replace(
            config, codec=replace(config.codec, path=str(Path(config.train.output).resolve() / NAME / "files" / "vae"))
        )
    write_state(config, partial, fingerprint)
    check_written(source, config, partial, progress)


def write_state(config: Config, run: Path, fingerprint: str) -> None:
    """What a checkpoint of weights alone has beside them; fingerprint: of its codec, "" where that is not known."""
    path = checkpoint_of(run)
    for target in (run, path):
        (target / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
    state = {
        "step": 0,
        "consumed": 0,
        "updates": 0,
        "codec": fingerprint,
        "seed": config.train.seed,
        "ema": False,
        "weights_only": True,
    }
    seal(path, state)


def license_of(folder: Path) -> str:
    """The licence that the front matter of a folder's README.md names, or "unknown"."""
    card = folder / "README.md"
    if not card.is_file() or card.is_symlink():
        return "unknown"
    with card.open("rb") as file:
        front = file.read(1 << 16).decode("utf-8", errors="replace").split("---")
    found = re.search(r"^license: *([A-Za-z0-9.+-]{1,40}) *$", front[1] if len(front) > 2 else "", re.MULTILINE)
    return found[1] if found else "unknown"


def check_written(source: Filling, config: Config, run: Path, progress: Progress) -> None:
    """Read all weights and tensors of a run back; UserError where one is not what was written."""
    weights, side = Weights(checkpoint_of(run), config), Side(run)
    for entry in source.entries:
        given = source.tensor(entry)
        _compare(f"{entry.hf} in {weights.path}", weights.tensor(entry).to(given.dtype), given)
        progress(given.nbytes)
    for item in source.side_entries():
        _compare(f"{item.key} in {side.path}", side.tensor(item.key), item.read())
        progress(item.size)


def _compare(what: str, written: Tensor, given: Tensor) -> None:
    if (
        written.dtype != given.dtype
        or written.shape != given.shape
        or not torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (written, given)))
    ):
        raise UserError(f"{what} is not what was written; is the disk sound? convert again")
