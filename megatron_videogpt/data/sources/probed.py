"""What video files are, found out once for each: all of a file may have to be decoded, and a folder may hold thousands.

Kept in ``probed.sqlite`` of the cache's folder, by path, size and time of change.  It may be deleted at any time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ...errors import UserError
from ..bad import BadVideo
from ..decode import VideoInfo, probe
from ..locks import locked
from ..shards.build import PROBE_TIMEOUT, parallel
from ..video.container import Limits

log = logging.getLogger(__name__)

DATABASE = "probed.sqlite"
RULE = 1  # how frames are numbered and pictures shown: what another release found out is found out anew
FEW = 32  # files that are looked into here and now, without processes, and kept only where that took decoding
ROWS = 5_000_000  # that are kept; the oldest go first
LOCK_SECONDS = 6 * 3600.0
"""That another process may take to look into a folder."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS videos (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, rule INTEGER, "
    "frames INTEGER, fps REAL, width INTEGER, height INTEGER, packed BLOB)"
)
_ASK = "SELECT frames, fps, width, height, packed FROM videos WHERE path = ? AND size = ? AND modified = ? AND rule = ?"
_KEEP = "INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def probe_files(
    files: Sequence[Path], limits: Limits, cache: Path | None, workers: int
) -> Iterator[VideoInfo | BadVideo]:
    """What each file is, in order, or why it is none.

    One process looks into files that are not known while others wait for it, on all machines that share the cache.

    Args:
        limits: see `Limits`.
        cache: folder; None keeps nothing.
        workers: processes that look.
    """
    known = _ask(files, limits, cache)
    missing = [file for file in files if file not in known]
    if len(missing) > FEW and cache is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache / ".probed.lock", LOCK_SECONDS, f"looking into {len(missing)} videos"):
                known = _ask(files, limits, cache)
                _look(files, known, limits, cache, workers)
        except (OSError, UserError) as error:
            log.warning("what is found out about videos is not kept: %s", error)
    _look(files, known, limits, cache, workers)
    yield from (known[file] for file in files)


def _look(
    files: Sequence[Path], known: dict[Path, VideoInfo | BadVideo], limits: Limits, cache: Path | None, workers: int
) -> None:
    """Complete ``known``."""
    missing = [file for file in files if file not in known]
    tasks = (partial(probe, os.fspath(file), limits) for file in missing)
    many = len(missing) > FEW
    fresh: list[VideoInfo] = []
    for file, found in zip(
        missing, parallel(tasks, len(missing), workers if many else 0, PROBE_TIMEOUT, "looking into videos")
    ):
        known[file] = found
        if isinstance(found, VideoInfo) and (many or found.table):
            fresh.append(found)
        if len(fresh) >= 1000:
            _keep(fresh, cache)
            fresh = []
    _keep(fresh, cache)


def _ask(files: Sequence[Path], limits: Limits, cache: Path | None) -> dict[Path, VideoInfo | BadVideo]:
    """What is known already of files, and within the limits."""
    known: dict[Path, VideoInfo | BadVideo] = {}
    if cache is None or not (cache / DATABASE).is_file():
        return known
    try:
        with closing(_connect(cache)) as database:
            for file in files:
                identity = _identity(file)
                if identity is None:
                    continue
                row = database.execute(_ASK, (*identity, RULE)).fetchone()
                if row is None:
                    continue
                frames, fps, width, height, packed = row
                if identity[1] <= limits.bytes and frames <= limits.frames and width * height <= limits.pixels:
                    known[file] = VideoInfo(os.fspath(file), frames, fps, width, height, packed)
    except sqlite3.Error as error:
        log.warning("%s: cannot be read (%s); delete it, and it is made anew", cache / DATABASE, error)
        return {}
    return known


def _keep(found: Sequence[VideoInfo], cache: Path | None) -> None:
    if cache is None or not found:
        return
    rows = [
        (*identity, RULE, info.frames, info.fps, info.width, info.height, info.table)
        for info in found
        if (identity := _identity(Path(info.path))) is not None
    ]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with closing(_connect(cache)) as database, database:
            database.execute(_TABLE)
            database.executemany(_KEEP, rows)
            database.execute(
                "DELETE FROM videos WHERE rowid <= (SELECT rowid FROM videos ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (ROWS,),
            )
    except (sqlite3.Error, OSError) as error:
        log.warning("%s: cannot be written (%s); every start looks into all videos again", cache / DATABASE, error)


def _connect(cache: Path) -> sqlite3.Connection:
    return sqlite3.connect(cache / DATABASE, timeout=60)


def _identity(file: Path) -> tuple[bytes, int, int] | None:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return os.fsencode(os.path.abspath(file)), status.st_size, status.st_mtime_ns
