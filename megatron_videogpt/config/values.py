"""A value of TOML as what an option, or an argument of a callback, is declared to be."""

from __future__ import annotations

import math
from typing import Any, get_args

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table {...}"}
PLURALS = {
    int: "whole numbers",
    float: "numbers",
    bool: "true or false",
    str: "texts in quotes",
    dict: 'names in quotes and tables {name = "...", ...}',
}


class Wrong(Exception):
    """A value of another type: the message says what was expected."""


def convert(value: Any, kind: Any) -> Any:
    """The value of an option of this type: int, float, bool, str, dict, or a tuple of them or of tuples of numbers.

    In a list of tables a text stands for a table with that name.

    Raises:
        Wrong: it is none.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in WORDS:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Wrong(WORDS[kind])
        if kind is float and not math.isfinite(value):
            raise Wrong("a finite number")
        return value
    element, *rest = get_args(kind)
    length = None if rest == [Ellipsis] else 1 + len(rest)
    of = PLURALS[element] if element in PLURALS else f"lists of {len(get_args(element))} numbers"
    expected = f"a list of {'' if length is None else f'{length} '}{of}"
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        raise Wrong(expected)
    try:
        named = ({"name": entry} if element is dict and isinstance(entry, str) else entry for entry in value)
        return tuple(convert(entry, element) for entry in named)
    except Wrong:
        raise Wrong(expected) from None
