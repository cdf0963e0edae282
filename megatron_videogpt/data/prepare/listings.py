"""What goes into shards: folders, lists, tables and existing shards, as one stream of rows in a fixed order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ..bad import BadVideo, shown
from ..shards.scan import LATENTS, SUFFIXES, label_of, scan_shard
from ..sources.files import EXTENSIONS, walk
from ..video.container import Limits
from .columns import WHERE, columns_of, meets, value_of
from .tables import read_table, table_format

KEY_LENGTH = 90  # characters; with a suffix a tar header of 100 holds the name without extensions


@dataclass(frozen=True)
class Listing:
    """How rows are read.  Where a column is asked for, a template of columns will do:
    ``{youtube_id}_{time_start:0>6}.mp4``.

    format: of tables and lists, when their names do not tell. records, join: see `read_table`. list_columns: of text
    lists, divided by white space; a single one takes whole lines. video_column, key_column, caption_column,
    label_column: columns of tables, or of the JSON beside a video or in a shard.
        Without the last two, columns named caption and label are taken where they exist.
    label_folder: the label is the name of the folder that the video lies in. root: folder that relative paths of tables
    and lists start from; empty: the table's own. search: find videos anywhere below root by their file names. sidecars:
    videos in folders have columns of their own, in NAME.json, and a text in NAME.txt (the column txt). where:
    conditions like ``split==train`` or ``aesthetic score>=5``, all of which a video must meet; numbers compare as
    numbers.
    """

    format: str = "auto"
    records: str = ""
    join: str = ""
    list_columns: tuple[str, ...] = ("video",)
    video_column: str = "video"
    key_column: str = ""
    caption_column: str = ""
    label_column: str = ""
    label_folder: bool = False
    root: str = ""
    search: bool = False
    sidecars: bool = False
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A video inside a tar file: places of its bytes, its JSON's and its text's (size 0: none)."""

    offset: int
    size: int
    meta_offset: int = 0
    meta_size: int = 0
    text_offset: int = 0
    text_size: int = 0


@dataclass(frozen=True)
class Row:
    """One video.  path: file that holds it; name: what people and metadata call it, as `shown`; suffix: with its dot,
    lower case; columns: of its table.

    key: empty, or in shards the one it had, until `list_rows` has made it unique.
    """

    path: str
    name: str
    key: str
    suffix: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    member: Member | None = None


def list_rows(sources: Sequence[str], listing: Listing) -> Iterator[Row | BadVideo]:
    """All videos of the sources, in the order of the sources and, in folders, of their names; nothing of a video is
    opened.

    Keys are the relative paths without extension (in shards, the keys), letters, digits, - and _ kept and all else made
    _; one that was there before gets -2, -3, ... Rows of a table that do not meet ``listing.where`` are left out here,
    those with sidecars or in shards by `describe`.

    Raises:
        ValueError: one line: a source that does not exist, cannot be listed, or is no listing; an option that does not
            fit.
    """
    check_listing(listing)
    seen: set[int] = set()
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise UserError(f"{source}: no such file or folder")
        for item in _rows_of(path, listing):
            yield item if isinstance(item, BadVideo) else _keyed(item, listing, seen)


def check_listing(listing: Listing) -> None:
    """ValueError, one line, for templates and conditions that cannot be read."""
    for name in ("video_column", "key_column", "caption_column", "label_column"):
        columns_of(getattr(listing, name), "--" + name.replace("_", "-"))
    for condition in listing.where:
        if not WHERE.match(condition):
            raise UserError(f"--where={condition!r}: must look like COLUMN==VALUE; the comparisons are == != >= <= > <")
    if not listing.list_columns:
        raise UserError("--list-columns='': must name the columns of a text list, for example 'video label'")


def describe(row: Row, listing: Listing, extra: Mapping[str, Any]) -> dict[str, Any] | None:
    """Caption and label of a video: {"caption", "captions" when there are several, "label"}; None when it does not meet
    ``listing.where``.

    Args:
        row: from `list_rows`.
        listing: the same.
        extra: columns from the JSON beside the video or in its shard.

    Raises:
        BadVideo: kind "metadata": a column that was asked for is missing.
    """
    columns = {**extra, **row.columns}
    if (row.member or listing.sidecars) and not meets(row.name, columns, listing.where):
        return None
    meta: dict[str, Any] = {}
    caption = (
        value_of(row.name, listing.caption_column, columns)
        if listing.caption_column
        else columns.get("caption", columns.get("txt"))
    )
    texts = [
        str(text).strip()
        for text in (caption if isinstance(caption, list) else [caption])
        if text is not None and str(text).strip()
    ]
    if texts:
        meta["caption"] = texts[0]
    if len(texts) > 1:
        meta["captions"] = texts
    label = value_of(row.name, listing.label_column, columns) if listing.label_column else columns.get("label")
    if listing.label_folder:
        label = PurePosixPath(row.name).parent.name
    if label is not None and str(label).strip():
        meta["label"] = str(label).strip()
    return meta


def _rows_of(path: Path, listing: Listing) -> Iterator[Row | BadVideo]:
    if path.is_dir():
        for file in walk(path, EXTENSIONS | {".tar"}, hidden=False):
            if file.suffix.lower() == ".tar":
                yield from _shard_rows(file)
            else:
                yield _row(file, file.relative_to(path).as_posix())
    elif path.suffix.lower() == ".tar":
        yield from _shard_rows(path)
    elif path.suffix.lower() in EXTENSIONS:
        yield _row(path, path.name)
    else:
        yield from _table_rows(path, listing)


def _shard_rows(path: Path) -> Iterator[Row | BadVideo]:
    """Videos of a WebDataset tar file in its order; before them, what is wrong with it."""
    try:
        part = scan_shard(os.fspath(path), Limits())
    except BadVideo as error:
        yield error
        return
    yield from part.rejected
    for entry in part.entries:
        start = int(entry["key_start"])
        key, suffix = part.keys[start : start + int(entry["key_size"])].decode(), SUFFIXES[entry["suffix"]]
        if suffix == LATENTS:
            yield BadVideo(label_of(os.fspath(path), key), "latents, which are no video any more", "extension")
            continue
        member = Member(
            *(int(entry[name]) for name in ("offset", "size", "meta_offset", "meta_size", "text_offset", "text_size"))
        )
        yield Row(os.fspath(path), label_of(os.fspath(path), key), key, f".{suffix}", {}, member)


def _table_rows(path: Path, listing: Listing) -> Iterator[Row | BadVideo]:
    needed = [
        *columns_of(listing.video_column),
        *columns_of(listing.key_column),
        *columns_of(listing.caption_column),
        *columns_of(listing.label_column),
    ]
    conditions = [match[1] for match in map(WHERE.match, listing.where) if match]
    wanted = [*needed, *conditions, "caption", "label"]
    kind = table_format(path, listing.format)
    root = Path(listing.root) if listing.root else path.parent
    if not root.is_dir():
        raise UserError(f"--root={listing.root}: no such folder; it is where the paths in {path.name} start from")
    known = _names_below(root) if listing.search else None
    table = read_table(path, kind, listing.list_columns, listing.records, listing.join, wanted, [*needed, *conditions])
    for number, columns in enumerate(table, 1):
        name = f"{path.name}[{number}]"
        try:
            if isinstance(columns, BadVideo):
                raise columns
            if not listing.sidecars and not meets(name, columns, listing.where):
                continue
            yield _table_row(name, root, known, columns, listing)
        except BadVideo as error:
            yield error


def _table_row(
    place: str, root: Path, known: Mapping[str, str] | None, columns: dict[str, Any], listing: Listing
) -> Row:
    value = str(value_of(place, listing.video_column, columns) or "").strip()
    if not value:
        raise BadVideo(place, f"a row without {listing.video_column}", "metadata")
    name = PurePosixPath(value)
    if known is not None:
        if name.name not in known:
            raise BadVideo(value, f"no file of this name below {root}", "missing")
        name = PurePosixPath(known[name.name])
    elif name.is_absolute() and name.is_relative_to(root.resolve().as_posix()):
        name = name.relative_to(root.resolve().as_posix())
    if ".." in name.parts or (name.is_absolute() and listing.root):
        raise BadVideo(value, f"leads out of {root}", "unsafe_name")
    if name.suffix.lower() not in EXTENSIONS:
        raise BadVideo(
            value, f"{name.suffix or 'no extension'}: must be one of {', '.join(sorted(EXTENSIONS))}", "extension"
        )
    return _row(root / name, name.as_posix(), {key: value for key, value in columns.items() if isinstance(key, str)})


def _names_below(root: Path) -> dict[str, str]:
    """Relative path of every video by its file name; of equal names the first path counts."""
    found: dict[str, str] = {}
    for file in walk(root, EXTENSIONS, hidden=False):
        found.setdefault(file.name, file.relative_to(root).as_posix())
    return found


def _row(path: Path, name: str, columns: Mapping[str, Any] | None = None) -> Row:
    return Row(os.fspath(path), shown(name), "", path.suffix.lower(), columns or {})


def _keyed(row: Row, listing: Listing, seen: set[int]) -> Row | BadVideo:
    try:
        text = (
            str(value_of(row.name, listing.key_column, row.columns))
            if listing.key_column
            else row.key or os.path.splitext(row.name)[0]
        )
    except BadVideo as error:
        return error
    return Row(row.path, row.name, unique_key(text, seen), row.suffix, row.columns, row.member)


def unique_key(text: str, seen: set[int]) -> str:
    """A key of letters, digits, - and _ that was not given before; ``seen`` holds 64-bit hashes of those that were, and
    gets this one.
    """
    base = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if len(base) > KEY_LENGTH or not base:
        base = f"{base[: KEY_LENGTH - 17]}-{blake2b(shown(text).encode(), digest_size=8).hexdigest()}"
    key, number = base, 1
    while (digest := int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")) in seen:
        number += 1
        key = f"{base}-{number}"
    seen.add(digest)
    return key
