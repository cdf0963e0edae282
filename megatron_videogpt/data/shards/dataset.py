"""Data sets of WebDataset tar files: finding and opening one, wherever it lies."""

from __future__ import annotations

import json
import logging
import os
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...errors import UserError, unusable
from ..bad import BadVideo
from ..locks import locked
from ..remote import Cache, attempt, filesystem, is_local, local_path
from ..video.container import DEFAULTS, Limits
from .build import build
from .index import Index, load, save

log = logging.getLogger(__name__)

LOCK_SECONDS = 2 * 3600.0
"""That another process may take to build an index."""


def open_index(url: str, cache: Cache, workers: int = 2, limits: Limits = DEFAULTS) -> Index:
    """The index of a data set; built when it is missing or the shards have changed, by one process while others wait.

    It is written beside the shards, or to the cache's folder where that cannot be done; the lock of who builds it lies
    there too.

    Args:
        url: a folder of ``*.tar``, one tar file, or a braced list ``.../shard-{000000..000127}.tar``; a path or any
            fsspec URL.
        cache: see `Cache`.
        workers: processes that build.
        limits: videos over them are left out.

    Raises:
        ValueError: one line: no tar file there, none usable, or storage that does not answer.
    """
    folder, shards, selected = find_shards(str(url))
    identity = [
        *(name for name, _ in shards if selected),
        *([] if limits == DEFAULTS else [limits.bytes, limits.frames, limits.pixels]),
    ]
    stem = f"index-{blake2b(json.dumps(identity).encode(), digest_size=6).hexdigest()}" if identity else "index"
    beside = f"{local_path(folder) if is_local(folder) else folder}/{stem}"
    kept = str(
        Path(cache.folder)
        / "indexes"
        / blake2b(folder.encode(errors="surrogateescape"), digest_size=10).hexdigest()
        / stem
    )

    def existing() -> Index | None:
        return load(beside, folder, shards, cache) or load(kept, folder, shards, cache)

    if (index := existing()) is not None:
        return index
    place = beside if is_local(folder) and os.access(local_path(folder), os.W_OK) else kept
    try:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache={cache.folder}: cannot be written ({error.strerror}); set it to a folder that can"
        ) from error
    # Beside the index, so that it holds for all machines that share the folder.
    with locked(Path(place).parent / f".{stem}.lock", LOCK_SECONDS, f"building the index of {folder}"):
        if (index := existing()) is not None:
            return index
        log.info("building the index of %d shards in %s", len(shards), folder)
        kind, part = build(folder, shards, cache, workers, limits)
        facts = _facts(folder, shards, cache) if kind == "latents" else {}
        try:
            save(place, shards, kind, facts, part)
        except OSError as error:
            raise UserError(
                f"data.path={url}: its index cannot be written to {place}.* ({error.strerror}); make room, or "
                "set data.cache"
            ) from error
    index = load(place, folder, shards, cache)
    if index is None:
        raise UserError(f"data.path={url}: the shards changed while they were indexed; try again")
    return index


def load_index(folder: str | Path) -> Index:
    """The index in a folder of shards on this machine, as it is; ValueError when there is none."""
    index = load(str(Path(folder) / "index"), str(folder), None, Cache(folder, 0))
    if index is None:
        raise UserError(f"{folder}: no index in it, or a damaged one")
    return index


def find_shards(url: str) -> tuple[str, list[tuple[str, int]], bool]:
    """(folder, (file name, bytes) of each tar file, whether only some of the folder are meant); ValueError when there
    is none.
    """
    wanted = expand_braces(url) if url.endswith(".tar") else []
    folder = (wanted[0].rpartition("/")[0] or ".") if wanted else url.rstrip("/")
    if any((name.rpartition("/")[0] or ".") != folder for name in wanted):
        raise UserError(f"data.path={url}: braces may vary the file's name only, not its folder")
    sizes = sizes_in(folder, "data.path=")
    names = [name.rpartition("/")[2] for name in wanted] or [
        name for name in sizes if name.endswith(".tar") and not name.startswith("._")
    ]
    missing = [name for name in names if name not in sizes]
    if missing:
        raise UserError(f"data.path={url}: {len(missing)} of {len(names)} shards are not there, e.g. {missing[0]}")
    if not names:
        raise UserError(
            f"data.path={url}: no *.tar in it; give a folder of WebDataset shards (megatron-videogpt data prepare "
            "makes them)"
        )
    return folder, [(name, sizes[name]) for name in sorted(set(names))], bool(wanted)


def expand_braces(url: str) -> list[str]:
    """``a-{000..002}.tar`` -> three names, ``{x,y}.tar`` -> two; ValueError over a million."""
    match = re.search(r"\{([^{}]*)\}", url)
    if match is None:
        return [url]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds and int(bounds[2]) - int(bounds[1]) >= 1_000_000:
        raise UserError(f"data.path={url}: over a million shards")
    choices = (
        [f"{n:0{len(bounds[1])}d}" for n in range(int(bounds[1]), int(bounds[2]) + 1)]
        if bounds
        else match[1].split(",")
    )
    return [name for choice in choices for name in expand_braces(url[: match.start()] + choice + url[match.end() :])]


def _size_of(entry: os.DirEntry[str]) -> int | None:
    """In bytes; None where the file is gone by now, as another node's partial index is once it has its name."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return None


def sizes_in(folder: str, before: str = "") -> dict[str, int]:
    """Bytes of each file of a folder, by name; UserError, one line, when that cannot be told.  before: begins the line,
    ahead of the folder.
    """
    if is_local(folder):
        if not local_path(folder).is_dir():
            raise UserError(f"{before}{folder}: no such folder")
        try:
            with os.scandir(local_path(folder)) as found:
                sizes = ((entry.name, _size_of(entry)) for entry in found if entry.is_file())
                return {name: size for name, size in sizes if size is not None}
        except PermissionError as error:
            raise unusable(f"{before}{folder}", error) from error

    def look() -> dict[str, int]:
        system, path = filesystem(folder)
        system.invalidate_cache()
        return {
            item["name"].rpartition("/")[2]: int(item["size"])
            for item in system.ls(path, detail=True)
            if item["type"] == "file" and item["size"] is not None
        }

    try:
        return attempt(folder, look)
    except BadVideo as error:
        raise UserError(f"{before}{error}") from error


def _facts(folder: str, shards: list[tuple[str, int]], cache: Cache) -> dict[str, Any]:
    """What latents say about themselves, from the sidecar files that `ShardWriter` leaves; {} without them."""
    found: list[dict[str, Any]] = []
    for name, _ in shards:
        try:
            facts = json.loads(cache.fetch(f"{folder}/{name.removesuffix('.tar')}.json").read_text(encoding="utf-8"))[
                "facts"
            ]
        except (BadVideo, OSError, ValueError, KeyError, TypeError):
            continue
        if facts not in found:
            found.append(facts)
    if len(found) > 1:
        raise UserError(
            f"data.path={folder}: latents of different codecs or sizes in one folder: {found[0]} and {found[1]}"
        )
    return found[0] if found else {}
