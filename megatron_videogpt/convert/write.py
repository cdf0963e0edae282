"""A run's checkpoint as a Hugging Face folder in the released layout, complete: weights, configuration, code, VAE,
tokenizer and model card.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..codec.build import build_codec
from ..codec.diffusers_vae import ignored_before
from ..codec.geometry import codec_folder, codec_geometry
from ..config.derived import frame_side
from ..config.toml import config_to_toml
from ..errors import UserError
from .card import model_card
from .export import NO_TOKENIZER, Export
from .folder import CARRIED_NAMES, Folder
from .settings import CODECS, TRAINING, codec_of, without_paths
from .standalone import hub_config, write_code, write_json, write_vae
from .table import parameters
from .tensor_files import Entry, write_tensors
from .untrusted import read_object


def write_folder(
    export: Export,
    folder: Path,
    max_bytes: int,
    vae: Path | None,
    tokenizer: Path | None,
    license: str | None,
    progress: Callable[[int], None],
) -> list[Path]:
    """Write a new folder, read every tensor back, and return the files of weights.  ValueError where one is not what
    was written.

    vae, tokenizer: folders that take the place of what the run brings along; license: None takes that of the folder the
    run came from.
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
    _check_scaling(export, folder / "vae")
    side, config = export.side, export.config
    original, longest = (side.facts["config"] if side else None), (None if export.untouched else frame_side(config))
    text_table = export.hint_ids, export.vocabulary
    facts = hub_config(config.model, export.weights.channels, *text_table, original, longest, config.condition)
    if not (export.untouched and export.wanted is None):
        facts["torch_dtype"] = facts["dtype"] = str(
            export.wanted or export.weights.dtype(next(parameters(config.model)))
        ).removeprefix("torch.")
    write_json(folder / "config.json", facts)
    vae_config = folder / "vae" / "config.json"
    write_code(folder, vae_config.is_file() and CODECS.get(read_object(vae_config).get("_class_name", "")) == "tiny")
    (folder / TRAINING).write_text(config_to_toml(without_paths(config)), encoding="utf-8")
    (folder / "README.md").write_text(model_card(export, license), encoding="utf-8")
    entries = export.entries()
    written = write_tensors(folder, [noted(entry) for entry in entries], max_bytes, progress)
    _check_written(folder, entries, digests, progress)
    return written


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
    elif not (folder / "vae").is_dir() and (export.config.codec.name == "tiny" or codec_folder(export.config.codec)):
        if codec_geometry(export.config.codec).channels == export.weights.channels:
            write_vae(folder, export.config.codec)


def _check_scaling(export: Export, vae: Path) -> None:
    """ValueError where the folder's pipeline would scale latents otherwise than the earlier release that trained the
    model did.
    """
    if (vae / "config.json").is_file() and ignored_before(read_object(vae / "config.json")):
        reason = build_codec(codec_of(vae)).identity.reason(export.codec_fingerprint)
        if reason:
            raise UserError(
                f"{export.path} was trained on other latents than the exported pipeline would give it{reason}; export "
                "it with the release that trained it"
            )


def digest(tensor: Tensor) -> str:
    """Checksum of a tensor's bytes."""
    return hashlib.blake2b(
        memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()), digest_size=16
    ).hexdigest()


def _check_written(
    folder: Path, entries: list[Entry], digests: dict[str, str], progress: Callable[[int], None]
) -> None:
    found = Folder(folder)
    if sorted(found.keys()) != sorted(digests):
        raise UserError(
            f"{folder}: the tensors on the disk are not those that were written; is the disk sound? convert again"
        )
    for entry in entries:
        if (found.shape(entry.key), found.dtype(entry.key)) != (entry.shape, entry.dtype) or digest(
            found.tensor(entry.key)
        ) != digests[entry.key]:
            raise UserError(
                f"{folder}: tensor {entry.key} on the disk is not what was written; is the disk sound? convert again"
            )
        progress(entry.size)
