"""Bytes of local files and of any fsspec URL (s3://, gs://, https://, ...); what came from far is kept in a folder
within a size limit.

Servers and keys come from where fsspec looks for them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... or fsspec's own
configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from ..errors import UserError
from .bad import BadVideo
from .locks import locked, partial_name

log = logging.getLogger(__name__)

PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt
LOCK_SECONDS = 60.0  # that another process may take to write one file into the cache, or to make room in it
READ_AHEAD = 1 << 16  # bytes read at once when a remote file is looked through
Result = TypeVar("Result")


def is_local(url: str | os.PathLike[str]) -> bool:
    """Whether a URL is a path on this machine."""
    return "://" not in os.fspath(url) or os.fspath(url).startswith("file://")


def local_path(url: str | os.PathLike[str]) -> Path:
    """The path of a local URL."""
    return Path(os.fspath(url).removeprefix("file://"))


@dataclass(frozen=True)
class Cache:
    """Keeps what was read from remote storage.  Several processes may use the same folder.

    folder: for members of shards (``members``), and for indexes; limit: bytes of ``members``, where the longest unused
    go first.
    """

    folder: str | os.PathLike[str]
    limit: int
    _told: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def read(self, url: str, offset: int, size: int) -> bytes:
        """A part of a file.

        Raises:
            BadVideo: kind "missing": not there, forbidden, or no answer after three attempts; "truncated": the file
                ends before that.
        """
        if is_local(url):
            return _checked(url, offset, size, _read_local(url, offset, size))
        place = self._place(f"{url}\0{offset}\0{size}")
        data = _read_kept(place)
        if data is None or len(data) != size:
            data = _checked(
                url,
                offset,
                size,
                attempt(url, lambda: filesystem(url)[0].cat_file(filesystem(url)[1], start=offset, end=offset + size)),
            )
            self._keep(place, data)
        return data

    def fetch(self, url: str) -> Path:
        """A whole small file as a local one; a remote one is fetched again when it has changed.  BadVideo as for
        `read`.
        """
        if is_local(url):
            path = local_path(url)
            if not path.is_file():
                raise BadVideo(url, "no such file", "missing")
            return path
        info = attempt(url, lambda: filesystem(url)[0].info(filesystem(url)[1]))
        version = "\0".join(
            str(info.get(name)) for name in ("size", "ETag", "etag", "LastModified", "mtime", "md5Hash")
        )
        place = self._place(f"{url}\0{version}")
        if _read_kept(place, 1) is None:
            self._write(place, attempt(url, lambda: filesystem(url)[0].cat_file(filesystem(url)[1])))
        return place

    def _place(self, identity: str) -> Path:
        digest = _digest(identity)
        return Path(self.folder) / "members" / digest[:2] / digest

    def _keep(self, place: Path, data: bytes) -> None:
        if len(data) <= self.limit:
            try:
                self._write(place, data)
            except (OSError, UserError) as error:
                if not self._told:
                    self._told.append(True)
                    log.warning("%s: cannot be written (%s); what is read from far is read again", self.folder, error)

    def _write(self, place: Path, data: bytes) -> None:
        """Make room and write; the file appears whole."""
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache={self.folder}: cannot be written ({error.strerror}); set it to a folder that can"
            ) from error
        partial, members = partial_name(place), Path(self.folder) / "members"
        with locked(members / "lock", LOCK_SECONDS, "writing into this cache"):
            total = _number(members / "total") + len(data)
            if total > self.limit:
                total = _make_room(members, self.limit - len(data)) + len(data)
            (members / "total").write_text(str(total), encoding="ascii")
            # Under the lock, so that files and their total cannot differ while room is made.
            try:
                partial.write_bytes(data)
                os.replace(partial, place)
            finally:
                partial.unlink(missing_ok=True)


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it); ValueError, one line, when its package is missing."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url}: {' '.join(str(error).split())} (for s3:// pip install s3fs, for gs:// gcsfs)"
        ) from error


def attempt(url: str, action: Callable[[], Result]) -> Result:
    """Do something with remote storage, three times if need be; BadVideo of kind "missing", one line, when it fails."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except (FileNotFoundError, PermissionError) as error:
            raise BadVideo(
                url,
                f"{'no such file or bucket' if isinstance(error, FileNotFoundError) else 'access denied'} ({error})",
                "missing",
            ) from error
        except UserError:
            raise
        except Exception as error:  # every kind of storage has its own exceptions
            if pause is None:
                reason = f"no answer after {len(PAUSES) + 1} attempts: {type(error).__name__}: {error}"
                raise BadVideo(
                    url, f"{reason[:300]} (are address and keys right, e.g. AWS_ENDPOINT_URL?)", "missing"
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def opened_at(url: str) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """(read(offset, size), bytes of the file), to look through a file; ``read`` gives less at the end."""
    if is_local(url):
        try:
            file: Any = open(local_path(url), "rb", buffering=READ_AHEAD)  # noqa: SIM115
        except OSError as error:
            raise BadVideo(url, error.strerror or str(error), "missing") from error
    else:
        system, path = filesystem(url)
        file = attempt(url, lambda: system.open(path, "rb", cache_type="readahead", block_size=READ_AHEAD))
    with file:
        length = file.seek(0, os.SEEK_END)

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size) if is_local(url) else attempt(url, lambda: (file.seek(offset), file.read(size))[1])

        yield read, length


def _read_local(url: str, offset: int, size: int) -> bytes:
    try:
        file = os.open(local_path(url), os.O_RDONLY)
    except OSError as error:
        raise BadVideo(url, error.strerror or str(error), "missing") from error
    try:
        parts = []
        while size > 0 and (part := os.pread(file, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    except OSError as error:
        raise BadVideo(url, error.strerror or str(error), "missing") from error
    finally:
        os.close(file)


def _checked(url: str, offset: int, size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise BadVideo(url, f"ends early: {len(data)} of {size} bytes at {offset}", "truncated")
    return data


def _read_kept(place: Path, limit: int = -1) -> bytes | None:
    """What was kept, now used again; None when it is not (or no longer) there."""
    try:
        with open(place, "rb") as file:
            os.utime(place)
            return file.read(limit)
    except OSError:
        return None


def _make_room(members: Path, limit: int) -> int:
    """Remove the longest unused files until a tenth below the limit; the bytes that are left.  For the holder of the
    lock.
    """
    found = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in members.glob("??/*")]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= 0.9 * limit:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=20).hexdigest()
