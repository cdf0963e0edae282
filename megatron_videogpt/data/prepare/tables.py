"""Lists and tables of videos as dicts of columns: text lists, CSV, TSV, JSONL, JSON and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..bad import BadVideo

FORMATS = {
    ".txt": "list",
    ".lst": "list",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
"""What a file name's ending says about a table."""
FIELD_LIMIT = (
    1 << 24
)  # characters of a CSV field; Python's own limit of 131072 is below the caption lists of long videos


def table_format(path: Path, asked: str = "auto") -> str:
    """The format of a table; ValueError when its name does not tell."""
    found = FORMATS.get(path.suffix.lower(), "") if asked == "auto" else asked
    if found not in FORMATS.values():
        raise UserError(
            f"{path}: must be a folder, a video, a .tar, a list (.txt) or a table ({', '.join(FORMATS)}); "
            "else say what it is with --format"
        )
    return found


def read_table(
    path: Path,
    kind: str,
    list_columns: Sequence[str],
    records: str,
    join: str,
    wanted: Sequence[str],
    needed: Sequence[str],
) -> Iterator[dict[str, Any] | BadVideo]:
    """Rows of a table in its order; what is wrong with a single row comes as a BadVideo in its place.

    Args:
        path: the file.
        kind: one of the values of `FORMATS`.
        list_columns: names of a text list's columns, divided by white space; one name takes whole lines.
        records: name of the list of objects inside a JSON file; empty: the file is that list.
        join: "LIST:COLUMN:VALUE" for JSON: every record gets, under the name VALUE, the values of the objects in LIST
            with the same COLUMN.
        wanted: columns that are read of a Parquet file, where they exist.
        needed: columns that a CSV or Parquet file must have.

    Raises:
        ValueError: one line: unreadable as a whole, or a column is missing.
    """
    try:
        if kind == "list":
            yield from _read_list(path, list_columns)
        elif kind in ("csv", "tsv"):
            yield from _read_csv(path, "\t" if kind == "tsv" else ",", needed)
        elif kind == "jsonl":
            yield from _read_jsonl(path)
        elif kind == "json":
            yield from _read_json(path, records, join)
        else:
            yield from _read_parquet(path, wanted, needed)
    except (OSError, csv.Error, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as {kind} ({' '.join(str(error).split())}); check the file, or say what "
            "it is with --format"
        ) from error


def _read_list(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            fields = [line.strip()] if len(columns) == 1 else line.split(None, len(columns) - 1)
            if fields and fields[0]:
                yield dict(zip(columns, (field.strip() for field in fields)))


def _read_csv(path: Path, delimiter: str, needed: Sequence[str]) -> Iterator[dict[str, Any] | BadVideo]:
    csv.field_size_limit(FIELD_LIMIT)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        _check_columns(path, reader.fieldnames or (), needed)
        header = len(reader.fieldnames or ())
        for row in reader:
            # DictReader puts surplus fields under None, and None into the columns that a short row lacks.
            count = len(row) - 1 + len(row[None]) if None in row else sum(value is not None for value in row.values())
            yield (
                row
                if count == header
                else BadVideo(
                    f"{path.name}:{reader.line_num}", f"{count} columns, but the header names {header}", "metadata"
                )
            )


def _read_jsonl(path: Path) -> Iterator[dict[str, Any] | BadVideo]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_object(line, f"{path.name}:{number}")


def parse_object(text: str | bytes, name: str) -> dict[str, Any] | BadVideo:
    """A JSON object, or the BadVideo of kind "metadata" that says why it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadVideo(name, f"not JSON ({error})", "metadata")
    return (
        value
        if isinstance(value, dict)
        else BadVideo(name, f"a JSON {type(value).__name__}, not an object", "metadata")
    )


def _read_json(path: Path, records: str, join: str) -> Iterator[dict[str, Any] | BadVideo]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); for one object in each line say --format jsonl") from error
    extra = _joined(path, document, join) if join else {}
    column, name = join.split(":")[1:] if join else ("", "")
    for number, record in enumerate(_list_in(path, document, records, "--records"), 1):
        if not isinstance(record, dict):
            yield BadVideo(f"{path.name}:{number}", f"a JSON {type(record).__name__}, not an object", "metadata")
        elif join:
            yield {**record, name: extra.get(record.get(column), [])}
        else:
            yield record


def _joined(path: Path, document: Any, join: str) -> dict[Any, list[Any]]:
    """Values of the second list by the shared column, in their order."""
    parts = join.split(":")
    if len(parts) != 3 or not all(parts):
        raise UserError(f"--join={join!r}: must look like LIST:COLUMN:VALUE, for example sentences:video_id:caption")
    values: dict[Any, list[Any]] = {}
    for record in _list_in(path, document, parts[0], "--join"):
        if isinstance(record, dict) and isinstance(record.get(parts[1]), (str, int)) and parts[2] in record:
            values.setdefault(record[parts[1]], []).append(record[parts[2]])
    return values


def _list_in(path: Path, document: Any, name: str, option: str) -> list[Any]:
    found = document.get(name) if name and isinstance(document, dict) else document
    if isinstance(found, list):
        return found
    inside = [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    hint = (
        f"it is an object with the lists {', '.join(inside)}: name one with {option}"
        if inside
        else f"name a list of objects with {option}"
    )
    raise UserError(f"{path}: no list {name!r} in it; {hint}" if name else f"{path}: must be a list of objects; {hint}")


def _read_parquet(path: Path, wanted: Sequence[str], needed: Sequence[str]) -> Iterator[dict[str, Any] | BadVideo]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet needs pyarrow, which is not installed; pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names, needed)
            batches = file.iter_batches(batch_size=1024, columns=[name for name in names if name in wanted])
            yield from chain.from_iterable(batch.to_pylist() for batch in batches)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _check_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(
            f"{path}: has no column {missing[0]!r}, its columns are {', '.join(names) or 'none'}; choose "
            "others with --video-column, ..."
        )
