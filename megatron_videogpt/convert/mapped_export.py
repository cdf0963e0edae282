"""A run's checkpoint as a folder that stands alone, or as a published file, for objectives whose package says which
published tensors are which parameter.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint.checks import other_encoder
from ..checkpoint.saved import Saved, find_checkpoint
from ..codec.options import CodecConfig
from ..condition.folder import fingerprint_of
from ..condition.options import IDS
from ..condition.tokenizer_file import tokenizer_path
from ..config.schema import Config
from ..config.toml import config_to_toml
from ..errors import UserError
from ..hub.common import text_ids
from ..hub.common.fsq_tokenizer import WEIGHTS
from ..model.parameters import Parameter
from ..objective.released import TOKENIZER, Released
from .card import front_and_origin
from .folder import Folder
from .hub_files import copy_code
from .mapped_codec import codec_of_run, write_codec
from .published import Origin, PublishedFile
from .settings import TRAINING, without_paths
from .sharded import Weights
from .side import NAME, Side
from .standalone import write_json
from .tensor_files import Entry, write_tensors
from .tokenizer import INSIDE


class MappedExport:
    """What a checkpoint gives, opened; nothing is written yet.  See `export.Export`."""

    def __init__(
        self, run: Path, released: Released, step: int | None, average: bool, dtype: torch.dtype | None
    ) -> None:
        saved = find_checkpoint(run, step)
        self.run, self.path, self.average, self.wanted = run, saved.path, average, dtype
        self.config: Config = saved.config
        self.released = released
        if average and not saved.state["ema"]:
            raise UserError(
                f"{self.path} has no moving average of the weights; train with optimizer.ema_decay, or take "
                "--weights trained"
            )
        self.weights = Weights(self.path, self.config, average)
        self.side = Side(run) if (run / NAME).is_dir() else None
        self.untouched = bool(saved.state.get("weights_only"))
        self.text_tokenizer = _text_tokenizer(saved)

    def entries(self) -> list[Entry]:
        """All tensors of the folder, each read when it is written."""
        found = [item for entry in self.weights.entries for item in self._pieces(entry)]
        places = self.side.places if self.side else {}
        return found + [self._carried(key) for key in places if key not in self.made] + self._made()

    @cached_property
    def made(self) -> dict[str, Tensor]:
        """What nobody trains, as the run's sizes have it; of a published network that nobody trained, what it came with
        stays.
        """
        if self.untouched and self.side is not None and self.side.facts["format"] == self.released.MODEL_TYPE:
            return {}
        made = self.released.buffers(self.settings())
        kept = {
            key
            for key, place in (self.side.places if self.side else {}).items()
            if key in made and key not in self.released.COMPUTED and place.shape == tuple(made[key].shape)
        }
        return {key: value for key, value in made.items() if key not in kept}

    def _made(self) -> list[Entry]:
        def entry(key: str, value: Tensor) -> Entry:
            dtype = self.wanted or value.dtype
            return Entry(key, tuple(value.shape), dtype, lambda: value.to(dtype))

        return [entry(key, value) for key, value in self.made.items()]

    def _pieces(self, entry: Parameter) -> Iterator[Entry]:
        first = 0
        for key, shape in self.released.pieces(entry, self.config.model, self.weights.channels):
            yield self._piece(entry, key, shape, slice(first, first + shape[0]))
            first += shape[0]

    def _piece(self, entry: Parameter, key: str, shape: tuple[int, ...], rows: slice) -> Entry:
        dtype = self._dtype(key, entry)
        return Entry(key, shape, dtype, lambda: self.weights.tensor(entry)[rows].to(dtype))

    def _dtype(self, key: str, entry: Parameter) -> torch.dtype:
        if self.wanted is not None:
            return self.wanted
        # Weights that were trained are kept as they were trained; others go back to what they came as.
        return self.side.dtype(key) if self.side and self.untouched else self.weights.dtype(entry)

    def _carried(self, key: str) -> Entry:
        assert self.side is not None
        side, place = self.side, self.side.places[key]
        dtype = self.wanted if self.wanted is not None and place.dtype.is_floating_point else place.dtype
        return Entry(key, place.shape, dtype, lambda: side.tensor(key).to(dtype))

    def codec(self, given: Path | None) -> CodecConfig | None:
        """Of the folder: see `mapped_codec.codec_of_run`."""
        return codec_of_run(self.released, self.run, self.config, self.weights.channels, given)

    def settings(self) -> dict[str, Any]:
        """`config.json`: what the run came with, and above it what it is now."""
        original = self.side.facts["config"] if self.side else {}
        told = self.released.settings_of(self.config, self.weights.channels)
        if self.untouched:
            # The videos of a run that nobody trained are those of its defaults.
            told = {key: value for key, value in told.items() if key in original or key != "latent"} | original
        kind = str(self.wanted or self.weights.dtype(self.weights.entries[0])).removeprefix("torch.")
        return original | told | self.released.AUTO | {"torch_dtype": kind, "dtype": kind}


def _text_tokenizer(saved: Saved) -> Path | None:
    """The file that makes ids of texts, where the run knows it still and it is the one that it was trained with."""
    condition = saved.config.condition
    if condition.kind != "text" or condition.encoder != IDS:
        return None
    try:
        path = tokenizer_path(condition)
        return None if other_encoder(saved, fingerprint_of(condition)) else path
    except UserError:
        return None


def write_folder(
    export: MappedExport,
    folder: Path,
    max_bytes: int,
    codec: CodecConfig | None,
    license: str | None,
    progress: Callable[[int], None],
) -> list[Path]:
    """Write a new folder, read every tensor back, and return the files of weights.  UserError where one is not what was
    written.
    """
    folder.mkdir(parents=True)
    _copy_files(export, folder)
    if codec is not None:
        write_codec(export.released, codec, folder)
    if export.text_tokenizer is not None:
        (folder / text_ids.FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(export.text_tokenizer, folder / text_ids.FOLDER / text_ids.FILE)
    copy_code(export.released.HUB, folder, tiny_codec=codec is not None and codec.name == "tiny")
    write_json(folder / "config.json", export.settings())
    (folder / TRAINING).write_text(config_to_toml(without_paths(export.config)), encoding="utf-8")
    front, origin = front_and_origin(export, license)
    (folder / "README.md").write_text(front + export.released.card(export.config) + origin, encoding="utf-8")
    digests: dict[str, str] = {}
    written = write_tensors(folder, [_noted(entry, digests) for entry in export.entries()], max_bytes, progress)
    _check(Folder(folder), digests, progress)
    return written


def write_published(
    export: MappedExport, path: Path, codec: CodecConfig | None, progress: Callable[[int], None]
) -> list[Path]:
    """Write a published file with the network, and a tokenizer in it, and read it back."""
    digests: dict[str, str] = {}
    state = {}
    for entry in export.entries():
        state[entry.key] = _noted(entry, digests).read()
        progress(entry.size)
    if codec is not None and export.released.CODEC == TOKENIZER:
        frozen = load_file(Path(codec.path) / WEIGHTS)
        state |= {INSIDE + key: value for key, value in frozen.items()}
    place = export.side.facts.get("entry", export.released.ENTRY) if export.side else export.released.ENTRY
    torch.save({place: state} if place else state, path)
    _check(PublishedFile(path), digests, progress)
    return [path]


def _copy_files(export: MappedExport, folder: Path) -> None:
    side = export.side
    for name in side.files() if side else []:
        if side is not None and name.parts[0] != export.released.CODEC:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(side.path / "files" / name, folder / name)


def digest(tensor: Tensor) -> str:
    """Checksum of a tensor's bytes."""
    plain = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(memoryview(plain) if plain.size else b"", digest_size=16).hexdigest()


def _noted(entry: Entry, digests: dict[str, str]) -> Entry:
    def read() -> Tensor:
        value = entry.read().contiguous()
        digests[entry.key] = digest(value)
        return value

    return replace(entry, read=read)


def _check(held: Origin, digests: dict[str, str], progress: Callable[[int], None]) -> None:
    if set(held.keys()) != set(digests):
        raise UserError(f"{held.path}: its tensors are not those that were written; is the disk sound? convert again")
    for key in digests:
        value = held.tensor(key)
        if digest(value) != digests[key]:
            raise UserError(f"{held.path}: tensor {key} is not what was written; is the disk sound? convert again")
        progress(value.nbytes)
