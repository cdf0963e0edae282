"""Columns of a video: names and templates of them, conditions on them, and what lies beside a video as
JSON and text.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..bad import BadVideo
from .tables import parse_object

SIDECAR_LIMIT = 16 << 20  # bytes of a .json or .txt beside a video
WHERE = re.compile(r"^\s*(.+?)\s*(==|!=|>=|<=|>|<)\s*(.*?)\s*$")


def columns_of(spec: str, option: str = "template") -> list[str]:
    """Columns that a column name or template uses; ValueError when it is no template."""
    if "{" not in spec:
        return [spec] if spec else []
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(spec) if name is not None]
    except ValueError as error:
        raise UserError(
            f"{option}={spec!r}: not a template of columns ({error}); write for example {{video_id}}.mp4"
        ) from error
    wrong = [name for name in names if not name or re.search(r"[.\[\]]", name)]
    if wrong:
        raise UserError(f"{option}={spec!r}: {wrong[0]!r} must be the name of a column")
    return names


def value_of(name: str, spec: str, columns: Mapping[str, Any]) -> Any:
    """A column, or a template filled in; BadVideo of kind "metadata" when a column is missing."""
    missing = [column for column in columns_of(spec) if columns.get(column) is None]
    if missing:
        raise BadVideo(name, f"no column {missing[0]!r}", "metadata")
    try:
        return spec.format_map(columns) if "{" in spec else columns[spec]
    except (ValueError, TypeError, LookupError) as error:
        raise BadVideo(name, f"{spec!r} cannot be filled in ({error})", "metadata") from error


def meets(name: str, columns: Mapping[str, Any], where: Sequence[str]) -> bool:
    """Whether all conditions (``COLUMN==VALUE``, also != >= <= > <; numbers compare as numbers) hold; BadVideo when one
    cannot be decided.
    """
    return all(_compare(name, columns, condition) for condition in where)


def _compare(name: str, columns: Mapping[str, Any], condition: str) -> bool:
    match = WHERE.match(condition)
    assert match is not None
    column, operator, text = match.groups()
    value = value_of(name, column, columns)
    pair: tuple[Any, Any] = (str(value), text)
    try:
        pair = (float(value), float(text))
    except (TypeError, ValueError):
        if operator not in ("==", "!="):
            raise BadVideo(
                name, f"{column}={str(value)[:40]!r} is no number that {condition!r} could compare", "metadata"
            ) from None
    left, right = pair
    return {
        "==": left == right,
        "!=": left != right,
        ">=": left >= right,
        "<=": left <= right,
        ">": left > right,
        "<": left < right,
    }[operator]


def read_sidecars(path: str) -> dict[str, Any]:
    """Columns of the .json beside a video and, as "txt", the text of its .txt; BadVideo of kind "metadata" when one is
    unusable.
    """
    columns: dict[str, Any] = {}
    for suffix in (".txt", ".json"):
        file = Path(path).with_suffix(suffix)
        if not file.is_file():
            continue
        if file.stat().st_size > SIDECAR_LIMIT:
            raise BadVideo(file, f"{file.stat().st_size} bytes of metadata, more than {SIDECAR_LIMIT}", "metadata")
        if suffix == ".txt":
            columns["txt"] = file.read_text(encoding="utf-8", errors="replace")
            continue
        found = parse_object(file.read_bytes(), os.fspath(file))
        if isinstance(found, BadVideo):
            raise found
        columns.update(found)
    return columns
