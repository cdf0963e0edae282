"""sha256 of files; that of a large one is taken once, and then known by its path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from functools import lru_cache
from pathlib import Path

KEPT_FROM = 1 << 26  # bytes from which a digest is kept on the disk: a T5-XXL of 20 GB takes a minute
PIECE = 1 << 22


def digest_of(data: Path | bytes) -> str:
    """sha256, hexadecimal, of a file or of bytes."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    status = data.stat()
    return _of_file(os.path.realpath(data), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _of_file(path: str, size: int, changed: int) -> str:
    place = _place(f"{path}\0{size}\0{changed}") if size >= KEPT_FROM else None
    if place is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if len(kept := place.read_text(encoding="ascii")) == 64:
                return kept
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    if place is not None:
        _keep(place, digest.hexdigest())
    return digest.hexdigest()


def _place(identity: str) -> Path | None:
    """Where a digest is kept; None without a home folder."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    name = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=20).hexdigest()
    return cache / "megatron_videogpt" / "digests" / name


def _keep(place: Path, digest: str) -> None:
    """A cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{secrets.token_hex(8)}.partial")
        partial.write_text(digest, encoding="ascii")
        os.replace(partial, place)
