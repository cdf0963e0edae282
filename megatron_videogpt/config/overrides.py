"""`section.option=value` of a command line: what is meant depends on the option's type, which is known later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Given:
    """A value of an override.  text: for an option that is text, all of it, or what is between its quotes; value: for
    any other, as TOML, or the text where it is none.
    """

    text: str
    value: Any

    def of(self, kind: Any) -> Any:
        """The value for an option of this type."""
        return self.text if kind is str else self.value


def split(overrides: Sequence[str]) -> tuple[list[tuple[str, Given]], list[str]]:
    """Names and values in their order, and what is wrong with the others, one line each."""
    pairs, problems = [], []
    for text in overrides:
        name, equals, value = text.partition("=")
        # Blanks around the sign belong to neither; without any before it, all behind it is the value.
        value = value.strip() if name != name.rstrip() else value
        name = name.strip()
        if not equals or "." not in name or not all(name.split(".")):
            problems.append(
                f"{text!r}: an override must look like section.option=value; write for example train.steps=500"
            )
        elif any("\ud800" <= letter <= "\udfff" for letter in value):
            problems.append(f"{name} = {value!r}: must be text in UTF-8; rename that file or folder")
        else:
            pairs.append((name, _given(value)))
    return pairs, problems


def _given(text: str) -> Given:
    bare = text.strip()
    quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'"
    try:
        parsed = tomllib.loads(f"value = {bare}")
    except tomllib.TOMLDecodeError:
        # Quotes around a name that has quotes or backslashes of its own.
        return Given(bare[1:-1] if quoted else text, bare)
    value = parsed["value"] if len(parsed) == 1 else bare
    return Given(value if quoted and isinstance(value, str) else text, value)


def set_value(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a nested key; a non-table in the way is replaced, and the type check then names the problem."""
    for key in path[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[path[-1]] = value


def plain(value: Any, kind: Any = None) -> Any:
    """A value, or a table with such values, without `Given`."""
    if isinstance(value, Given):
        return value.of(kind)
    return {key: plain(entry, kind) for key, entry in value.items()} if isinstance(value, dict) else value
