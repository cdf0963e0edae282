"""Videos -> WebDataset shards: each is read, checked and perhaps cut in a process of its own, and written in the order
of the listing.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...config.toml import to_toml
from ...errors import UserError, unusable
from ..bad import BadVideo, shown
from ..locks import locked
from ..shards.dataset import load_index
from ..shards.writer import ShardWriter, merge_index
from ..workers import Pool
from .listings import Row, list_rows
from .video import Options, Ready, check_options, read_row

log = logging.getLogger(__name__)

VERSION = 1  # of the layout that `prepare` writes
NAMED = 10  # rejections of a run that are logged; all of them are in the file
Progress = Callable[[int, int, int], None]
RECORD, REJECTED, REPORT, LOCK = "prepare.toml", "rejected.jsonl", "report.json", ".prepare.lock"


@dataclass(frozen=True)
class Report:
    """What a finished output holds; rejected: counts by kind, of this and earlier runs of the same command."""

    videos: int
    frames: int
    hours: float
    gigabytes: float
    shards: int
    rejected: dict[str, int]


def prepare(
    options: Options,
    output: Path,
    workers: int,
    timeout: float,
    progress: Progress = lambda done, rows, rejected: None,
    read: Callable[..., list[Ready] | None] = read_row,
) -> tuple[Report, bool]:
    """Write the shards, or go on where a run of the same options ended.

    Args:
        options: what to write.
        output: folder for the shards, their index, prepare.toml, rejected.jsonl and report.json; nothing is written
            elsewhere.
        workers: processes; 0 works in this one.
        timeout: seconds after which a video is given up.
        progress: called with rows that are done, rows in all, and rows rejected by this run.
        read: what the processes do with (row, options=options).

    Returns:
        The report, and whether there was anything left to do.

    Raises:
        ValueError: one line: an option or source that cannot be, another command's output, or no video that can be
            used.
    """
    check_options(options)
    inside = [source for source in options.sources if output.resolve().is_relative_to(Path(source).resolve())]
    if inside:
        raise UserError(
            f"--output={output}: lies inside the source {inside[0]}, which would then hold its own shards; "
            "choose a folder elsewhere"
        )
    rows = partial(_rows, options)
    count, fingerprint = _survey(rows())
    if not count:
        raise UserError(
            f"{', '.join(options.sources)}: no video in it that meets the conditions; see --where, or give "
            "folders, lists or tables of videos"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(f"--output={output}", error) from error
    with locked(output / LOCK, 0, "preparing videos there"):
        if not _claim(output, _record(options, count, fingerprint)):
            return _load_report(output), False
        writer = ShardWriter(output, "videos", shard_bytes=int(options.shard_mb * 1e6), shard_count=options.shard_count)
        with Pool(partial(read, options=options), workers, timeout, label=_label) as pool:
            _write(
                output, writer, rows(), pool, 2 * workers + 2, lambda done, rejected: progress(done, count, rejected)
            )
        return _finish(output), True


def _rows(options: Options) -> Iterator[Row | BadVideo]:
    rows = list_rows(options.sources, options.listing)
    return islice(rows, options.limit) if options.limit else rows


def _survey(rows: Iterator[Row | BadVideo]) -> tuple[int, str]:
    """Number of rows and a hash of them, by which a listing that has changed since is found."""
    digest, count = blake2b(digest_size=16), 0
    for row in rows:
        count += 1
        facts = (
            [str(row)]
            if isinstance(row, BadVideo)
            else [row.key, row.name, asdict(row.member) if row.member else None, row.columns]
        )
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return count, digest.hexdigest()


def _record(options: Options, count: int, fingerprint: str) -> dict[str, Any]:
    values = asdict(options)
    values["sources"] = [shown(os.path.abspath(source)) for source in options.sources]
    listing, limits = values.pop("listing"), values.pop("limits")
    if listing["root"]:
        listing["root"] = shown(os.path.abspath(listing["root"]))
    return {
        "version": VERSION,
        **values,
        **listing,
        **{f"max_{name}": value for name, value in limits.items()},
        "rows": count,
        "fingerprint": fingerprint,
    }


def _claim(output: Path, record: dict[str, Any]) -> bool:
    """Take the folder for this command, or find it taken by the same one; False when that is finished."""
    text = "".join(f"{name} = {to_toml(value)}\n" for name, value in record.items())
    path = output / RECORD
    if path.is_file():
        before = path.read_text(encoding="utf-8")
        if before != text:
            changed = [(old, new) for old, new in zip(before.splitlines(), text.splitlines()) if old != new]
            what = " and now ".join(changed[0]) if changed else "another version's layout"
            raise UserError(
                f"{output}: was begun by another command, or the videos have changed since ({what}); choose "
                "another --output, or delete that one"
            )
        return not (output / REPORT).is_file()
    other = sorted(entry.name for entry in output.iterdir() if entry.name != LOCK)
    if other:
        raise UserError(
            f"{output}: holds {other[0]}, and no {RECORD} of an earlier run; choose an empty or new folder "
            "with --output"
        )
    _write_whole(path, text)
    return True


def _write(
    output: Path,
    writer: ShardWriter,
    rows: Iterator[Row | BadVideo],
    pool: Pool,
    window: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write what rows give from where finished shards end."""
    begin = writer.resume_position + 1
    _keep_rejected(output / REJECTED, begin)
    bad = 0
    with open(output / REJECTED, "a", encoding="utf-8") as rejected:
        for number, result in _in_order(pool, enumerate(rows), begin, window):
            if isinstance(result, BadVideo):
                line = {"name": result.path, "kind": result.kind, "reason": result.reason, "row": number}
                rejected.write(json.dumps(line) + "\n")
                rejected.flush()
                bad += 1
                if bad <= NAMED:
                    log.warning(
                        "rejected (%s) %s%s",
                        result.kind,
                        result,
                        f"; more are named in {output / REJECTED} only" if bad == NAMED else "",
                    )
            for ready in result if isinstance(result, list) else ():
                files = {ready.suffix.removeprefix("."): ready.data.tobytes()}
                writer.add(ready.key, files, ready.meta, number, ready.table)
            progress(number + 1, bad)
    writer.close()
    merge_index(output, "videos")


def _in_order(
    pool: Pool, rows: Iterator[tuple[int, Row | BadVideo]], begin: int, window: int
) -> Iterator[tuple[int, list[Ready] | BadVideo | None]]:
    """Results in the order of the rows from number ``begin`` on, at most ``window`` of them ahead."""
    ahead: deque[tuple[int, BadVideo | None]] = deque()
    for number, row in rows:
        if number < begin:
            continue
        if isinstance(row, Row):
            pool.submit(number, row)
        ahead.append((number, row if isinstance(row, BadVideo) else None))
        if len(ahead) >= window:
            yield _result(pool, *ahead.popleft())
    while ahead:
        yield _result(pool, *ahead.popleft())


def _result(pool: Pool, number: int, bad: BadVideo | None) -> tuple[int, list[Ready] | BadVideo | None]:
    if bad is not None:
        return number, bad
    try:
        return number, pool.wait(number)
    except BadVideo as error:
        return number, error


def _label(row: Row) -> str:
    return row.name


def _keep_rejected(path: Path, begin: int) -> None:
    """Drop the lines of rows that are read again; a killed process may have left half a line, too."""
    if path.is_file():
        lines = (line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n"))
        _write_whole(path, "".join(line for line in lines if json.loads(line)["row"] < begin))


def _finish(output: Path) -> Report:
    """Count what was written; ValueError when that is nothing."""
    lines = [json.loads(line) for line in (output / REJECTED).read_text(encoding="utf-8").splitlines()]
    rejected = dict(Counter(line["kind"] for line in lines).most_common())
    index = load_index(output)
    if not len(index.entries):
        first = f"; the first: {lines[0]['name']}: {lines[0]['reason']}" if lines else "; see --where and the sources"
        raise UserError(f"{output}: no video can be used, {sum(rejected.values())} were rejected{first}")
    entries = index.entries
    seconds = float((entries["frames"] / entries["fps"].astype(np.float64)).sum())
    size = sum(size for _, size in index.shards)
    report = Report(
        len(entries),
        int(entries["frames"].sum(dtype=np.int64)),
        round(seconds / 3600, 4),
        round(size / 1e9, 6),
        len(index.shards),
        rejected,
    )
    _write_whole(output / REPORT, json.dumps(asdict(report), indent=1) + "\n")
    return report


def _load_report(output: Path) -> Report:
    return Report(**json.loads((output / REPORT).read_text(encoding="utf-8")))


def _write_whole(path: Path, text: str) -> None:
    partial_path = path.with_name(path.name + ".partial")
    partial_path.write_text(text, encoding="utf-8")
    os.replace(partial_path, path)
