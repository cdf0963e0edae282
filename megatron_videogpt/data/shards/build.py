"""Building the index of shards: their headers and metadata, and the videos that must be looked into, side by side in
several processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ...errors import UserError
from ..bad import BadVideo
from ..remote import Cache
from ..video.container import Limits
from ..workers import Pool
from .scan import ENTRY, LATENTS, SUFFIXES, Part, label_of, probe_member, scan_shard

SCAN_TIMEOUT, PROBE_TIMEOUT = 3600.0, 1800.0  # seconds for a shard, and for a video, all of which may be decoded
FEW = 8  # shards
AHEAD = 256  # tasks handed to the processes before the oldest result is taken


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
    start, row = 0, 0
    tables: dict[int, bytes] = {}
    for i, part in enumerate(parts):
        part.entries["shard"] = i
        part.entries["key_start"] += np.uint64(start)
        tables |= {row + number: table for number, table in part.tables.items()}
        start, row = start + len(part.keys), row + len(part.entries)
    entries = np.concatenate([part.entries for part in parts]) if parts else np.empty(0, ENTRY)
    rejected = [error for part in parts for error in part.rejected]
    return Part(entries, b"".join(part.keys for part in parts), rejected, tables)


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
            for name in ("width", "height", "frames", "fps"):
                part.entries[name][i] = getattr(found, name)
            if found.table:
                part.tables[i] = found.table
    # What is wrong with the metadata of a video matters no more when the video itself is bad.
    part.rejected[:] = [error for error in part.rejected if error.path not in failed] + list(failed.values())
    kept = np.flatnonzero(part.entries["frames"] > 0)
    part.tables = {new: part.tables[old] for new, old in enumerate(kept.tolist()) if old in part.tables}
    part.entries = part.entries[kept]
