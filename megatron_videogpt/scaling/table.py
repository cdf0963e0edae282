"""Anybody's table of points: a CSV file with a line of names."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ..errors import UserError, unusable
from .law import FLOPS
from .points import Point

KNOWN = "N (parameters), loss, and D (tokens) or C (FLOPs, taken as 6 N D); name, S (steps) and b (batch) if there are"
ERROR = "se_"
"""Before the name of a loss, the column of its standard errors."""
LEVEL = "loss_"
"""Columns that begin so are losses of their own: by noise level, by latent frame."""


def read_table(path: Path) -> list[Point]:
    """Points of a CSV file, one a line; what is no number becomes NaN, which `points.select` drops with its reason.

    Raises:
        UserError: no such file, not a table, or without the columns that are needed.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except OSError as error:
        raise unusable(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of text ({error}); give a CSV file with the columns {KNOWN}") from error
    head = [cell.strip() for cell in lines[0]] if lines else []
    missing = [name for name in ("N", "loss") if name not in head] + ["D or C"] * (not {"D", "C"} & set(head))
    if missing:
        raise UserError(
            f"{path}: has no column {' and no '.join(missing)}; its first line is {','.join(head)[:80]!r}, and the "
            f"columns are {KNOWN}"
        )
    points = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(head):
            raise UserError(f"{path} line {number}: has {len(line)} cells, and the first line {len(head)} names")
        points.append(_point(dict(zip(head, line)), number))
    return points


def _point(cells: dict[str, str], number: int) -> Point:
    size, loss = _number(cells["N"]), _number(cells["loss"])
    tokens = _number(cells["D"]) if cells.get("D", "").strip() else math.nan
    compute = _number(cells.get("C", ""))
    if math.isnan(tokens) and size > 0:
        tokens = compute / (FLOPS * size)
    levels = {name: _number(text) for name, text in cells.items() if name.startswith(LEVEL)}
    given = {name: _number(cells.get(f"{ERROR}{name}", "")) for name in ("loss", *levels)}
    errors = {name: value for name, value in given.items() if math.isfinite(value)}
    name, steps, batch = cells.get("name", "").strip() or f"line {number}", cells.get("S", ""), cells.get("b", "")
    return Point(name, size, tokens, loss, _number(steps), _number(batch), levels=levels, errors=errors)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
