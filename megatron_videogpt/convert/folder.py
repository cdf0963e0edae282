"""A Hugging Face checkpoint folder, opened without trusting it and read one tensor at a time; and writing tensors as
safetensors in shards.

Nothing is ever unpickled: weights come from safetensors alone.  Links (the Hugging Face cache is made of them) may lead
to files of the same folder or of its cache's `blobs`; weights, which people keep on other disks, may be links to any
regular file.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..hub.common import text_ids
from .hints import TOKENIZER_FILES, find_hint_ids
from .untrusted import PLAIN_NAME, Stored, read_header, read_object, read_tensor, real_file, show

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
TEXT_TABLES = ("llm.embed_tokens.weight", "model.embed_tokens.weight")
CONFIG_BYTES = 4 * 2**20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CARRIED_NAMES = (
    *TOKENIZER_FILES,
    *(
        "tokenizer.model",
        "special_tokens_map.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
    ),
    *("chat_template.json", "chat_template.jinja", "generation_config.json", "extra.json"),
)
CARRIED_STARTS = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
CARRIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".md", "")
CARRIED_FOLDERS = ("vae", "tokenizer", text_ids.FOLDER)
CARRIED_FILES = 200
CARRIED_BYTES = 4 * 2**30


class Folder:
    """A checkpoint folder in the Hugging Face layout (reference README section 7).  Opening raises ValueError, one
    line, for anything broken or malicious.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; expected a checkpoint folder with config.json and {WEIGHTS}")
        resolved = self.path.resolve()
        # .../models--OWNER--NAME/snapshots/REVISION keeps its files in models--OWNER--NAME/blobs.
        self._homes = (
            (resolved, resolved.parent.parent / "blobs") if resolved.parent.name == "snapshots" else (resolved,)
        )
        self.config: dict[str, Any] = read_object(self.path / "config.json", self._homes, CONFIG_BYTES)
        self._tensors = self._open_shards()

    def _open_shards(self) -> dict[str, Stored]:
        index = self.path / INDEX
        weight_map = self._weight_map(index) if os.path.lexists(index) else None
        names = sorted(set(weight_map.values())) if weight_map is not None else self._loose_shards()
        tensors: dict[str, Stored] = {}
        for name in names:
            for key, place in read_header(self.path / name).items():
                if key in tensors:
                    raise UserError(
                        f"{self.path}: tensor {show(key)} is in {tensors[key].path.name} and in {name}; "
                        "remove the file that does not belong here"
                    )
                if weight_map is not None and weight_map.get(key) != name:
                    raise UserError(
                        f"{index}: tensor {show(key)} is in {name}, the index names {show(weight_map.get(key))}"
                    )
                tensors[key] = place
        for key in weight_map or ():
            if key not in tensors:
                raise UserError(
                    f"{index}: names tensor {show(key)} in {(weight_map or {})[key]}, which does not hold it"
                )
        return tensors

    def _weight_map(self, index: Path) -> dict[str, str]:
        weight_map = read_object(index, self._homes).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: expected weight_map, from tensors to the names of files")
        for key, name in weight_map.items():
            if (
                not isinstance(name, str)
                or len(name) > 255
                or not PLAIN_NAME.fullmatch(name)
                or not name.endswith(".safetensors")
            ):
                raise UserError(
                    f"{index}: tensor {show(key)} is said to be in {show(name)}; expected the plain name of a "
                    ".safetensors file of this folder"
                )
        if WEIGHTS not in weight_map.values() and os.path.lexists(self.path / WEIGHTS):
            raise UserError(
                f"{self.path}: holds {WEIGHTS} and an index that does not name it; remove the one that does "
                "not belong here"
            )
        return weight_map

    def _loose_shards(self) -> list[str]:
        present = sorted(os.listdir(self.path))
        names = [name for name in present if name.endswith(".safetensors")]
        for name in names:
            if not PLAIN_NAME.fullmatch(name):
                raise UserError(
                    f"{self.path}: a file is named {show(name)}; rename it with letters, digits, dots and dashes"
                )
        if not names:
            pickles = [name for name in present if name.endswith(PICKLES)]
            if pickles:
                how = (
                    "convert them where you trust their origin: load with transformers, save_pretrained(folder, "
                    "safe_serialization=True)"
                )
                raise UserError(
                    f"{self.path}: weights only as pickles ({show(pickles[0])}), which can run code and are "
                    f"never opened; get the safetensors, or {how}"
                )
            raise UserError(
                f"{self.path}: no *.safetensors file; expected a checkpoint folder with config.json and {WEIGHTS}"
            )
        return names

    def _place(self, key: str) -> Stored:
        if key not in self._tensors:
            held = (
                f"it holds {len(self._tensors)} tensors, such as "
                f"{', '.join(show(name) for name in list(self._tensors)[:3])}"
            )
            raise UserError(f"{self.path}: tensor {key} is missing from the checkpoint; {held}")
        return self._tensors[key]

    def keys(self) -> list[str]:
        """The tensors of all shards, in the files' order."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._place(key).shape

    def dtype(self, key: str) -> torch.dtype:
        """Type of a tensor, from the header: a floating-point one, or integer or bool for what a model does not use."""
        return self._place(key).dtype

    def tensor(self, key: str) -> Tensor:
        """One tensor, in memory of its own."""
        return read_tensor(self._place(key))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object beside config.json, or None where the folder has no such file."""
        path = self.path / name
        return read_object(path, self._homes) if os.path.lexists(path) else None

    @cached_property
    def _hint_ids(self) -> tuple[int, int, int] | None:
        tables = [self.shape(key)[0] for key in TEXT_TABLES if key in self._tensors and self.shape(key)]
        stated = self.config.get("vocab_size")
        vocabulary = tables[0] if tables else stated if type(stated) is int and stated > 0 else None
        files = [
            (name, self.read_json(name))
            for name in (*TOKENIZER_FILES, *(f"tokenizer/{name}" for name in TOKENIZER_FILES))
        ]
        return find_hint_ids(
            self.config, [(name, content) for name, content in files if content is not None], vocabulary, self.path
        )

    def hint_ids(self) -> tuple[int, int, int] | None:
        """Rows of `<|diffusion|>`, `<img>`, `</img>` in the text table, or None where nothing names them.  ValueError
        for contradictions and impossible ids.
        """
        return self._hint_ids

    def carried(self) -> list[Path]:
        """Files, relative to the folder, that travel along with converted weights: tokenizer, VAE, licences.

        No code, no pickles, no hidden files.  ValueError for a link that leads out of the folder and its cache (copying
        it would give away a file of yours), for a link to a folder, and for more than `CARRIED_FILES` files or
        `CARRIED_BYTES` bytes.
        """
        found = [
            Path(name)
            for name in sorted(os.listdir(self.path))
            if name in CARRIED_NAMES or (name.startswith(CARRIED_STARTS) and _carriable(name))
        ]
        for part in CARRIED_FOLDERS:
            found += self._walk(Path(part))
        if len(found) > CARRIED_FILES:
            raise UserError(
                f"{self.path}: more than {CARRIED_FILES} files in {' and '.join(CARRIED_FOLDERS)}; remove "
                "what does not belong there"
            )
        size = sum(real_file(self.path / name, self._homes).stat().st_size for name in found)
        if size > CARRIED_BYTES:
            raise UserError(
                f"{self.path}: its tokenizer and VAE files take {size} bytes; at most {CARRIED_BYTES} travel along"
            )
        return found

    def _walk(self, part: Path) -> list[Path]:
        """Carriable files below a folder, without following links to folders; one more than the limit at most."""
        found: list[Path] = []
        waiting = [part]
        while waiting:
            folder = waiting.pop(0)
            if (self.path / folder).is_symlink():
                raise UserError(f"{self.path / folder}: a link to a folder; put the folder itself in its place")
            if not (self.path / folder).is_dir():
                continue
            for name in sorted(os.listdir(self.path / folder)):
                if name.startswith("."):
                    continue
                if not PLAIN_NAME.fullmatch(name):
                    raise UserError(
                        f"{self.path / folder}: a file is named {show(name)}; rename it with letters, digits, "
                        "dots and dashes"
                    )
                inner = self.path / folder / name
                if inner.is_dir():
                    waiting.append(folder / name)
                elif _carriable(name):
                    found.append(folder / name)
                if len(found) + len(waiting) > CARRIED_FILES:
                    raise UserError(
                        f"{self.path / part}: more than {CARRIED_FILES} files and folders; remove what does "
                        "not belong there"
                    )
        return found


def _carriable(name: str) -> bool:
    return PLAIN_NAME.fullmatch(name) is not None and Path(name).suffix.lower() in CARRIED_SUFFIXES
