"""Indexes of shards: where each sample is and how large its video, in three files that are mapped into memory.

``index.json`` says what the data set is, ``index.npy`` holds a row of `ENTRY` per sample, ``index.keys`` the keys one
after another (UTF-8); ``index.rejected.jsonl`` names what was left out.  Equal shards give equal bytes on every
machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ...errors import UserError
from ..bad import REASONS, BadVideo
from ..locks import partial_name
from ..remote import Cache
from ..video.container import Limits
from ..workers import Pool
from .scan import ENTRY, LATENTS, SUFFIXES, Part, label_of, parse_json, probe_member, scan_shard

VERSION = 1
SCAN_TIMEOUT, PROBE_TIMEOUT = 3600.0, 120.0  # seconds for a shard, and for a video
FEW = 8  # shards
AHEAD = 256  # tasks handed to the processes before the oldest result is taken
FILES = (".npy", ".keys", ".rejected.jsonl", ".json")  # the last one says that the others are whole


@dataclass(frozen=True, eq=False)
class Index:
    """Samples of a data set of shards.

    url: folder of the shards; kind: videos or latents; shards: (file name, bytes) of each; facts: of latents; entries:
    `ENTRY`, memory-mapped; keys: uint8, memory-mapped; fingerprint: sha256 of all that, not of where it lies; rejected:
    what was left out when it was built.
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
        partial_file = partial_name(place + extension)
        try:
            action(partial_file)
            os.replace(partial_file, place + extension)
        finally:
            partial_file.unlink(missing_ok=True)

    def write_rows(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, part.entries, allow_pickle=False)

    # Until the last file is in place, sizes that do not fit it tell a reader that a new index is coming.
    write(".npy", write_rows)
    write(".keys", lambda path: path.write_bytes(part.keys))
    write(".rejected.jsonl", lambda path: path.write_text("".join(lines), encoding="utf-8"))
    write(".json", lambda path: path.write_text(json.dumps(description), encoding="utf-8"))


def load(place: str, url: str, shards: list[tuple[str, int]] | None, cache: Cache) -> Index | None:
    """The index at ``place`` (a path or URL without extension); None when there is none, or it is damaged or of other
    shards (None: not compared).
    """
    try:
        rows, keys, rejected, description = (cache.fetch(place + extension) for extension in FILES)
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
        lines = [json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()]
        errors = tuple(
            BadVideo(line["name"], line["reason"], line["kind"] if line["kind"] in REASONS else "unreadable")
            for line in lines
        )
        mapped = np.memmap(keys, np.uint8, "r") if found["key_bytes"] else np.empty(0, np.uint8)
        return Index(
            url,
            str(found["kind"]),
            tuple(listed),
            dict(found["facts"]),
            entries,
            mapped,
            str(found["fingerprint"]),
            errors,
            cache,
        )
    except (BadVideo, OSError, ValueError, KeyError, TypeError):
        return None


def build(url: str, shards: list[tuple[str, int]], cache: Cache, workers: int, limits: Limits) -> tuple[str, Part]:
    """(kind, what the shards hold), from their headers and metadata; videos without metadata are probed.

    Raises:
        ValueError: one line: nothing usable, or videos and latents together.
    """
    urls = [f"{url}/{name}" for name, _ in shards]
    parts = []
    # Headers are read by Python alone, which is safe here; starting processes would take longer than a few shards do.
    tasks = (partial(scan_shard, shard, limits) for shard in urls)
    scans = parallel(tasks, len(urls), workers if len(urls) > FEW else 0, SCAN_TIMEOUT, "indexing shards")
    for shard, found in zip(urls, scans):
        parts.append(
            found
            if isinstance(found, Part)
            else Part(np.empty(0, ENTRY), b"", [BadVideo(shard, found.reason, found.kind)])
        )
    part = join(parts)
    _probe_missing(urls, part, cache, workers, limits)
    if not len(part.entries):
        first = f"; the first thing rejected: {part.rejected[0]}" if part.rejected else ""
        raise UserError(f"data.path={url}: no usable sample in {len(shards)} tar files{first}")
    latents = part.entries["suffix"] == SUFFIXES.index(LATENTS)
    if latents.any() and not latents.all():
        raise UserError(
            f"data.path={url}: {latents.sum()} latents and {(~latents).sum()} videos; put them into two folders"
        )
    return ("latents" if latents.all() else "videos"), part


def join(parts: list[Part]) -> Part:
    """One part of many; the rows of part i get shard number i."""
    start = 0
    for i, part in enumerate(parts):
        part.entries["shard"] = i
        part.entries["key_start"] += np.uint64(start)
        start += len(part.keys)
    entries = np.concatenate([part.entries for part in parts]) if parts else np.empty(0, ENTRY)
    return Part(entries, b"".join(part.keys for part in parts), [error for part in parts for error in part.rejected])


def parallel(tasks: Iterable[partial], total: int, workers: int, timeout: float, title: str) -> Iterator[Any]:
    """Results of calls in their order, a BadVideo in place of each one that raised it."""

    def run() -> Iterator[Any]:
        ahead: deque[int] = deque()
        with Pool(_call, min(workers, total), timeout, label=lambda task: str(task.args[0])) as pool:
            for number, task in enumerate(tasks):
                pool.submit(number, task)
                ahead.append(number)
                # Not all at once: there may be millions.
                if len(ahead) > AHEAD:
                    yield _result(pool, ahead.popleft())
            for number in ahead:
                yield _result(pool, number)

    if total:
        console = Console(stderr=True)
        yield from track(run(), title, total=total, console=console, disable=not console.is_terminal, transient=True)


def _result(pool: Pool, number: int) -> Any:
    try:
        return pool.wait(number)
    except BadVideo as error:
        return error


def _call(task: partial) -> Any:
    return task()


def _probe_missing(urls: list[str], part: Part, cache: Cache, workers: int, limits: Limits) -> None:
    """Complete the rows without geometry; take out those whose videos cannot be read."""
    missing: list[int] = np.flatnonzero(part.entries["frames"] == 0).tolist()

    def place(i: int) -> tuple[str, str]:
        """(shard, key) of a row."""
        row = part.entries[i]
        start = int(row["key_start"])
        return urls[int(row["shard"])], part.keys[start : start + int(row["key_size"])].decode()

    tasks = (
        partial(probe_member, *place(i), int(part.entries[i]["offset"]), int(part.entries[i]["size"]), limits, cache)
        for i in missing
    )
    failed: dict[str, BadVideo] = {}
    for i, found in zip(missing, parallel(tasks, len(missing), workers, PROBE_TIMEOUT, "probing videos")):
        if isinstance(found, BadVideo):
            label = label_of(*place(i))
            failed[label] = BadVideo(label, found.reason, found.kind)
        else:
            for name, value in zip(("width", "height", "frames", "fps"), found):
                part.entries[name][i] = value
    # What is wrong with the metadata of a video matters no more when the video itself is bad.
    part.rejected[:] = [error for error in part.rejected if error.path not in failed] + list(failed.values())
    part.entries = part.entries[part.entries["frames"] > 0]
