"""Indexes of shards: where each sample is and how large its video, in three files that are mapped into memory.

``index.json`` says what the data set is, ``index.npy`` holds a row of `ENTRY` per sample, ``index.keys`` the keys one
after another (UTF-8); ``index.rejected.jsonl`` names what was left out.  Equal shards give equal bytes on every
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bad import REASONS, BadVideo
from ..locks import write_whole
from ..remote import Cache
from .scan import ENTRY, SUFFIXES, Part, label_of, parse_json

VERSION = 1
FILES = (
    ".npy",
    ".keys",
    ".tables.npy",
    ".tables",
    ".rejected.jsonl",
    ".json",
)  # the last one says that the others are whole


@dataclass(frozen=True, eq=False)
class Index:
    """Samples of a data set of shards.

    url: folder of the shards; kind: videos or latents; shards: (file name, bytes) of each; facts: of latents; entries:
    `ENTRY`, memory-mapped; keys: uint8, memory-mapped; fingerprint: sha256 of all that, not of where it lies; rejected:
    what was left out when it was built; places, tables: int64 [n, 3] of (row, start, size) by row, and uint8, both
    memory-mapped: see `table`.
    """

    url: str
    kind: str
    shards: tuple[tuple[str, int], ...]
    facts: dict[str, Any]
    entries: np.ndarray
    keys: np.ndarray
    fingerprint: str
    rejected: tuple[BadVideo, ...]
    cache: Cache
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    tables: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, i: int) -> str:
        """Key of a sample."""
        start = int(self.entries[i]["key_start"])
        return self.keys[start : start + int(self.entries[i]["key_size"])].tobytes().decode("utf-8", "backslashreplace")

    def shard_url(self, i: int) -> str:
        """The tar file that a sample is in."""
        return f"{self.url}/{self.shards[int(self.entries[i]['shard'])][0]}"

    def suffix(self, i: int) -> str:
        """File name extension of a sample's video or latents, without the dot."""
        return SUFFIXES[int(self.entries[i]["suffix"])]

    def table(self, i: int) -> bytes:
        """Where the frames of a video are whose times do not tell (see `VideoInfo`); empty for all others."""
        place = int(np.searchsorted(self.places[:, 0], i))
        if place == len(self.places) or self.places[place, 0] != i:
            return b""
        _, start, size = self.places[place].tolist()
        return self.tables[start : start + size].tobytes()

    def data(self, i: int) -> bytes:
        """A sample's video or latents; BadVideo when they cannot be read."""
        return self.cache.read(self.shard_url(i), int(self.entries[i]["offset"]), int(self.entries[i]["size"]))

    def meta(self, i: int) -> dict[str, Any]:
        """A sample's JSON, with ``caption`` from its text file where the JSON has none; {} without either.  BadVideo
        when it cannot be read.
        """
        entry, found = self.entries[i], {}
        if entry["meta_size"]:
            data = self.cache.read(self.shard_url(i), int(entry["meta_offset"]), int(entry["meta_size"]))
            found = parse_json(label_of(self.shard_url(i), self.key(i)), data)
        if entry["text_size"] and "caption" not in found:
            text = self.cache.read(self.shard_url(i), int(entry["text_offset"]), int(entry["text_size"]))
            found["caption"] = text.decode("utf-8", "replace").strip()
        return found


def save(place: str, shards: Iterable[tuple[str, int]], kind: str, facts: dict[str, Any], part: Part) -> None:
    """Write an index; ``place`` is its path without extension.

    Readers see the old one or the new one, and several processes may write the same one at the same time.
    """
    description: dict[str, Any] = {
        "version": VERSION,
        "kind": kind,
        "shards": [list(shard) for shard in shards],
        "facts": facts,
        "suffixes": list(SUFFIXES),
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    digest.update(part.entries.view(np.uint8).data)
    digest.update(part.keys)
    description |= {"entries": len(part.entries), "key_bytes": len(part.keys), "fingerprint": digest.hexdigest()}
    lines = [
        json.dumps({"name": error.path, "kind": error.kind, "reason": error.reason}) + "\n" for error in part.rejected
    ]

    def write(extension: str, action: Callable[[Path], Any]) -> None:
        write_whole(place + extension, action)

    def write_array(path: Path, array: np.ndarray) -> None:
        with open(path, "wb") as file:
            np.save(file, array, allow_pickle=False)

    rows = sorted(part.tables)
    sizes = np.array([len(part.tables[row]) for row in rows], np.int64)
    places = np.stack([np.array(rows, np.int64), sizes.cumsum() - sizes, sizes], 1)

    # Until the last file is in place, sizes that do not fit it tell a reader that a new index is coming.
    write(".npy", lambda path: write_array(path, part.entries))
    write(".tables.npy", lambda path: write_array(path, places))
    write(".tables", lambda path: path.write_bytes(b"".join(part.tables[row] for row in rows)))
    write(".keys", lambda path: path.write_bytes(part.keys))
    write(".rejected.jsonl", lambda path: path.write_text("".join(lines), encoding="utf-8"))
    write(".json", lambda path: path.write_text(json.dumps(description), encoding="utf-8"))


def load(place: str, url: str, shards: list[tuple[str, int]] | None, cache: Cache) -> Index | None:
    """The index at ``place`` (a path or URL without extension); None when there is none, or it is damaged or of other
    shards (None: not compared).
    """
    try:
        rows, keys, places, tables, rejected, description = (cache.fetch(place + extension) for extension in FILES)
        found = json.loads(description.read_text(encoding="utf-8"))
        listed = [(str(name), int(size)) for name, size in found["shards"]]
        if found["version"] != VERSION or found["suffixes"] != list(SUFFIXES) or shards not in (None, listed):
            return None
        entries = np.load(rows, mmap_mode="r", allow_pickle=False)
        whole = (
            entries.dtype == ENTRY
            and entries.shape == (found["entries"],)
            and keys.stat().st_size == found["key_bytes"]
        )
        if not whole or entries["shard"].max(initial=0) >= max(1, len(listed)):
            return None
        table_places = np.load(places, mmap_mode="r", allow_pickle=False)
        if table_places.dtype != np.int64 or table_places.shape[1:] != (3,):
            return None
        if len(table_places) and table_places[-1, 1:].sum() != tables.stat().st_size:
            return None
        lines = [json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()]
        errors = tuple(
            BadVideo(line["name"], line["reason"], line["kind"] if line["kind"] in REASONS else "unreadable")
            for line in lines
        )
        return Index(
            url,
            str(found["kind"]),
            tuple(listed),
            dict(found["facts"]),
            entries,
            _mapped(keys),
            str(found["fingerprint"]),
            errors,
            cache,
            table_places,
            _mapped(tables),
        )
    except (BadVideo, OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
