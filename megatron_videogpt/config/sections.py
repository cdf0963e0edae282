"""Sections of a configuration that others own: the options and rules of a codec, or of an objective, under its name.

A module that brings one enters it here when it is imported (`megatron_videogpt/__init__.py` imports those of this
package), so that this folder knows none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KINDS = ("codec", "objective")
"""Sections of which a configuration has one of several, told by its option `name`."""


@dataclass(frozen=True)
class Section:
    """options: a frozen dataclass with `option`s, `name` among them; rules: adds to a `problems.Report` what is wrong
    with them.
    """

    options: type
    rules: Callable[[Any], None]


_entered: dict[str, dict[str, Section]] = {kind: {} for kind in KINDS}


def enter(kind: str, name: str, options: type, rules: Callable[[Any], None]) -> None:
    """Make a codec or an objective known; the first of a kind is the default.  Raises ValueError where another has its
    name.
    """
    known = _entered[kind].setdefault(name, Section(options, rules))
    if known.options is not options:
        raise ValueError(f"{kind} {name!r} is entered twice: {known.options.__module__} and {options.__module__}")


def names(kind: str) -> tuple[str, ...]:
    """The known names of a kind, the default first."""
    return tuple(_entered[kind])


def find(kind: str, name: Any = None) -> Section:
    """The section of this name; of the default where it is not known (the check of names says so)."""
    known = _entered[kind]
    return known[name] if isinstance(name, str) and name in known else next(iter(known.values()))


def section(kind: str) -> Any:
    """A dataclass field that holds a section of this kind."""
    return field(default_factory=lambda: find(kind).options(), metadata={"kind": kind})


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its help text and the names it may take (each element, for a list); lists and dicts of
    TOML become tuples and fresh dicts.
    """
    metadata = {"help": help, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)
