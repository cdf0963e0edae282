"""A run's checkpoint as a Hugging Face folder in the released layout, complete: weights, configuration, code, VAE, tokenizer and model card."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.saved import find_checkpoint
from ..codec.geometry import codec_geometry
from ..config.load import config_to_toml
from ..config.schema import Config
from ..errors import UserError
from ..model.parameters import EMBED_TOKENS, POSITION_TABLE, Parameter, parameters
from ..model.patches import position_axis
from .card import model_card
from .folder import CARRIED_NAMES, CARRIED_STARTS, Entry, Folder, write_tensors
from .ingest import CODECS, TRAINING, codec_of, without_paths
from .sharded import Weights
from .side import NAME, Side
from .standalone import hub_config, write_code, write_json, write_vae
from .untrusted import read_object

SCRATCH_HINT_IDS, SCRATCH_VOCABULARY = (1, 2, 3), 4
"""The text table of a model that never had one: a placeholder of zeros, then the three hint rows."""

NO_TOKENIZER = (*CARRIED_STARTS, "generation_config.json", "extra.json")
"""Starts of the names of files that travel along and are not the tokenizer's."""


class Export:
    """What a checkpoint gives, opened; nothing is written yet.

    average: the moving average of the weights; dtype: what floating-point tensors are cast to, None keeps what they have.
    Raises ValueError in one line when there is no such checkpoint.
    """

    def __init__(self, run: Path, step: int | None = None, average: bool = False, dtype: torch.dtype | None = None) -> None:
        saved = find_checkpoint(run, step)
        self.run, self.path, self.average, self.wanted = run, saved.path, average, dtype
        self.config: Config = saved.config
        if average and not saved.state["ema"]:
            raise UserError(f"{self.path} has no moving average of the weights; train with optimizer.ema_decay, or take --weights trained")
        self.weights = Weights(self.path, self.config.model, average)
        self.side = Side(run) if (run / NAME).is_dir() else None
        # Weights that were trained on are kept as exactly as they were trained; others go back to what they came as.
        self.untouched = bool(saved.state.get("weights_only"))
        self.hint_ids = self.side.hint_ids if self.side else SCRATCH_HINT_IDS

    @property
    def vocabulary(self) -> int:
        """Rows of the text table."""
        return self.side.places[EMBED_TOKENS].shape[0] if self.side else SCRATCH_VOCABULARY

    def entries(self) -> list[Entry]:
        """All tensors of the folder, each read when it is written."""
        model = self.config.model
        found = [self._position_table()]
        for entry in parameters(model):
            found.append(self._text_table(entry) if entry.hf == EMBED_TOKENS else self._parameter(entry))
        side = self.side
        if side is not None:
            found += [self._carried(key) for key in side.places if key not in (EMBED_TOKENS, POSITION_TABLE)]
        return found

    def _dtype(self, entry: Parameter) -> torch.dtype:
        if self.wanted is not None:
            return self.wanted
        return self.side.dtype(entry.hf) if self.side and self.untouched else self.weights.dtype(entry)

    def _parameter(self, entry: Parameter) -> Entry:
        dtype = self._dtype(entry)
        return Entry(entry.hf, self.weights.shape(entry), dtype, lambda: self.weights.tensor(entry).to(dtype))

    def _text_table(self, entry: Parameter) -> Entry:
        width, side = self.config.model.hidden_size, self.side
        dtype = self._dtype(entry)
        if side is not None and self.wanted is None and not self.untouched:
            dtype = torch.promote_types(dtype, side.dtype(EMBED_TOKENS))

        def read() -> Tensor:
            table = side.tensor(EMBED_TOKENS).to(dtype) if side else torch.zeros(SCRATCH_VOCABULARY, width, dtype=dtype)
            table[list(self.hint_ids)] = self.weights.tensor(entry).to(dtype)
            return table

        return Entry(EMBED_TOKENS, (self.vocabulary, width), dtype, read)

    def _position_table(self) -> Entry:
        """A constant, which no choice of dtype concerns."""
        side, size, width = self.side, self.config.model.position_table_size, self.config.model.hidden_size
        if side is not None and POSITION_TABLE in side.places:
            place = side.places[POSITION_TABLE]
            return Entry(POSITION_TABLE, place.shape, place.dtype, lambda: side.tensor(POSITION_TABLE))

        def read() -> Tensor:
            axis = position_axis(size, width)
            # The column's half comes first.
            return torch.cat([axis[None].expand(size, -1, -1), axis[:, None].expand(-1, size, -1)], dim=-1).reshape(1, size * size, width)

        return Entry(POSITION_TABLE, (1, size * size, width), torch.float32, read)

    def _carried(self, key: str) -> Entry:
        assert self.side is not None
        side, place = self.side, self.side.places[key]
        dtype = self.wanted if self.wanted is not None and place.dtype.is_floating_point else place.dtype
        return Entry(key, place.shape, dtype, lambda: side.tensor(key).to(dtype))


def write_folder(
    export: Export, folder: Path, max_bytes: int, vae: Path | None, tokenizer: Path | None, license: str | None, progress: Callable[[int], None]
) -> list[Path]:
    """Write a new folder, read every tensor back, and return the files of weights.  ValueError where one is not what was written.

    vae, tokenizer: folders that take the place of what the run brings along; license: None takes that of the folder the run came from.
    """
    digests: dict[str, str] = {}

    def noted(entry: Entry) -> Entry:
        def read() -> Tensor:
            value = entry.read()
            digests[entry.key] = digest(value)
            return value

        return replace(entry, read=read)

    folder.mkdir(parents=True)
    # What can be wrong with it shows before the slow part.
    _write_files(export, folder, vae, tokenizer)
    side, config = export.side, export.config
    original, longest = (side.facts["config"] if side else None), (None if export.untouched else _side_of(config))
    facts = hub_config(config.model, export.weights.channels, export.hint_ids, export.vocabulary, original, longest)
    if not (export.untouched and export.wanted is None):
        facts["torch_dtype"] = facts["dtype"] = str(export.wanted or export.weights.dtype(next(parameters(config.model)))).removeprefix("torch.")
    write_json(folder / "config.json", facts)
    vae_config = folder / "vae" / "config.json"
    write_code(folder, vae_config.is_file() and CODECS.get(read_object(vae_config).get("_class_name", "")) == "tiny")
    (folder / TRAINING).write_text(config_to_toml(without_paths(config)), encoding="utf-8")
    (folder / "README.md").write_text(model_card(export, license), encoding="utf-8")
    entries = export.entries()
    written = write_tensors(folder, [noted(entry) for entry in entries], max_bytes, progress)
    _check_written(folder, entries, digests, progress)
    return written


def _side_of(config: Config) -> int:
    """Longer side of the frames that a run was trained on, in pixels."""
    return config.data.physics.size if config.data.source == "physics" else config.data.longest_side


def _write_files(export: Export, folder: Path, vae: Path | None, tokenizer: Path | None) -> None:
    """What travels along, then what was asked for in its place, else the codec that the run was trained with."""
    side = export.side
    for name in side.files() if side else []:
        kept = vae is None if name.parts[0] == "vae" else tokenizer is None or name.name.startswith(NO_TOKENIZER)
        if side is not None and kept:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(side.path / "files" / name, target)
    for path in sorted(tokenizer.iterdir()) if tokenizer is not None else []:
        if path.name in CARRIED_NAMES and path.is_file() and not path.name.startswith(NO_TOKENIZER):
            shutil.copyfile(path, folder / path.name)
    if vae is not None:
        write_vae(folder, codec_of(vae))
    elif not (folder / "vae").is_dir() and (export.config.codec.name == "tiny" or export.config.codec.path):
        if codec_geometry(export.config.codec).channels == export.weights.channels:
            write_vae(folder, export.config.codec)


def digest(tensor: Tensor) -> str:
    """Checksum of a tensor's bytes."""
    return hashlib.blake2b(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()), digest_size=16).hexdigest()


def _check_written(folder: Path, entries: list[Entry], digests: dict[str, str], progress: Callable[[int], None]) -> None:
    found = Folder(folder)
    if sorted(found.keys()) != sorted(digests):
        raise UserError(f"{folder}: the tensors on the disk are not those that were written; is the disk sound? convert again")
    for entry in entries:
        if (found.shape(entry.key), found.dtype(entry.key)) != (entry.shape, entry.dtype) or digest(found.tensor(entry.key)) != digests[entry.key]:
            raise UserError(f"{folder}: tensor {entry.key} on the disk is not what was written; is the disk sound? convert again")
        progress(entry.size)
