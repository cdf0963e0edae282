"""Writing data sets of WebDataset tar files, several processes at once, and their index."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..bad import BadVideo
from ..video.container import Limits
from .build import join
from .index import save
from .scan import ENTRY, LATENTS, SUFFIXES, TEXTS, Part, geometry_of, split_name

log = logging.getLogger(__name__)


class ShardWriter:
    """Writes tar files ``<prefix>-000000.tar``, ... each of which appears whole, with a sidecar file that says what it
    holds.

    The same samples give the same bytes.  In a folder with shards of the same prefix it continues after the last one.

    Args:
        folder: made when missing.
        kind: "videos" or "latents".
        facts: of latents, what they were made with; the same in every shard of a data set.
        shard_bytes, shard_count: a shard is closed when it reaches one of them (at the next new ``position``).
        prefix: of the file names; several writers (ranks) of one folder need different ones.

    Raises:
        ValueError: one line: the folder holds shards of another kind, or that this class did not write.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        facts: dict[str, Any] | None = None,
        shard_bytes: int = 10**9,
        shard_count: int = 10_000,
        prefix: str = "shard",
    ) -> None:
        self._folder, self._kind, self._facts, self._prefix = Path(folder), kind, facts or {}, prefix
        self._limits = shard_bytes, shard_count
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number, self._position = 0, -1
        for path in sorted(self._folder.glob(f"{prefix}-[0-9]*.tar")):
            record = read_sidecar(path, kind, self._facts)
            self._number, self._position = (
                int(path.stem.rpartition("-")[2]) + 1,
                max(self._position, record["position"]),
            )
        self._resume = self._position
        for path in self._folder.glob(f"{prefix}-[0-9]*.tar.partial"):
            path.unlink()
        self._tar: tarfile.TarFile | None = None
        self._rows: list[list[Any]] = []
        self._tables: dict[int, str] = {}
        self._keys: set[str] = set()

    @property
    def resume_position(self) -> int:
        """The last source position that finished shards hold; -1 when there are none."""
        return self._resume

    def add(
        self, key: str, files: dict[str, bytes], meta: dict[str, Any], position: int = 0, table: bytes = b""
    ) -> None:
        """Write a sample.

        Args:
            key: unique in its shard; no dot after the last slash, relative, no ``..``.
            files: by extension without dot: one video (or safetensors), and text if any.
            meta: becomes ``key.json``; width, height, frames are needed, fps is wanted.
            position: of the source it is from, ascending; samples of one source stay in one shard.
            table: of a video whose times do not tell which frame is which, see `VideoInfo`.

        Raises:
            ValueError: one line: a bad key, extension or metadata.
        """
        videos = [suffix for suffix in files if suffix in SUFFIXES and (suffix == LATENTS) == (self._kind == "latents")]
        if len(videos) != 1 or any(suffix not in (*videos, *TEXTS) for suffix in files):
            raise ValueError(
                f"sample {key}: extensions {list(files)}: needs one of {' '.join(SUFFIXES)}, and may have "
                f"{' '.join(TEXTS)}"
            )
        if split_name(f"{key}.x") != (key, "x") or {"..", ".", ""} & set(key.split("/")) or not key.isprintable():
            raise ValueError(
                f"sample {key!r}: a key must be a relative path without '..', and without a dot in its last part"
            )
        try:
            geometry = geometry_of(key, meta, Limits(frames=2**32 - 1, pixels=2**62))
        except BadVideo as error:
            raise UserError(f"sample {error}") from error
        if geometry is None:
            raise ValueError(f"sample {key}: its metadata needs width, height and frames")
        if (
            self._tar is not None
            and position > self._position
            and (self._tar.offset >= self._limits[0] or len(self._rows) >= self._limits[1])
        ):
            self._finish()
        if key in self._keys:
            raise ValueError(f"sample {key}: its key is in this shard already")
        self._keys.add(key)
        self._position = max(self._position, position)
        written = {suffix: self._write(f"{key}.{suffix}", data) for suffix, data in files.items()}
        meta_place = self._write(f"{key}.json", json.dumps(meta, ensure_ascii=False, sort_keys=True).encode())
        text = next((written[suffix] for suffix in files if suffix in TEXTS), (0, 0))
        if table:
            self._tables[len(self._rows)] = b64encode(table).decode()
        self._rows.append([key, SUFFIXES.index(videos[0]), *written[videos[0]], *meta_place, *text, *geometry])

    def close(self) -> None:
        """Finish the last shard; `merge_index` then makes the index."""
        if self._tar is not None:
            self._finish()

    def _write(self, name: str, data: bytes) -> tuple[int, int]:
        """(offset, size) of a new member's bytes."""
        if self._tar is None:
            self._tar = tarfile.open(f"{self._path}.partial", "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))
        # Python's list of members would grow without end.
        self._tar.getmembers().clear()
        return self._tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._prefix}-{self._number:06d}.tar"

    def _finish(self) -> None:
        assert self._tar is not None
        self._tar.close()
        partial = Path(f"{self._path}.partial")
        record = {
            "kind": self._kind,
            "facts": self._facts,
            "bytes": partial.stat().st_size,
            "position": self._position,
            "samples": self._rows,
            "tables": self._tables,
        }
        sidecar = self._path.with_suffix(".json")
        Path(f"{sidecar}.partial").write_text(json.dumps(record), encoding="utf-8")
        os.replace(f"{sidecar}.partial", sidecar)
        # The tar file comes last: one that is there has its sidecar.
        os.replace(partial, self._path)
        self._tar, self._rows, self._keys, self._number = None, [], set(), self._number + 1
        self._tables = {}


def read_sidecar(path: Path, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What `ShardWriter` noted about a tar file; ValueError, one line, when it does not fit."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        bytes_then, kind_then, facts_then = record["bytes"], record["kind"], record["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: has no sidecar file {path.stem}.json, so it was not written by this tool; choose another folder"
        ) from error
    if bytes_then != path.stat().st_size:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes, but its sidecar file says {bytes_then}; delete both and run again"
        )
    if (kind_then, facts_then) != (kind, facts):
        raise UserError(f"{path}: holds {kind_then} {facts_then}, not {kind} {facts}; choose another folder")
    return record


def merge_index(folder: str | Path, kind: str, facts: dict[str, Any] | None = None) -> None:
    """Write the index of a folder that `ShardWriter`s have filled, from their sidecar files.

    Raises:
        ValueError: one line: a shard of another kind or codec, or without its sidecar file.
    """
    paths = sorted(Path(folder).glob("*.tar"))
    parts = []
    for path in paths:
        record = read_sidecar(path, kind, facts or {})
        keys = [key.encode() for key, *_ in record["samples"]]
        rows = [
            (0, *places_and_geometry, 0, len(key), suffix)
            for key, (_, suffix, *places_and_geometry) in zip(keys, record["samples"])
        ]
        entries = np.array(rows, ENTRY)
        entries["key_start"] = np.cumsum(entries["key_size"], dtype=np.uint64) - entries["key_size"]
        tables = {int(row): b64decode(table) for row, table in record.get("tables", {}).items()}
        parts.append(Part(entries, b"".join(keys), [], tables))
    save(
        str(Path(folder) / "index"),
        [(path.name, path.stat().st_size) for path in paths],
        kind,
        facts or {},
        join(parts),
    )
