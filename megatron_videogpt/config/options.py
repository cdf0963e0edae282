"""Every option of the schema by its dotted name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from . import sections
from .schema import Config


@dataclass(frozen=True)
class Option:
    """One option of the schema: full dotted name, type, default, help text, the names it may take (empty: any), and
    whether it is a path.
    """

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    path: bool = False


def default_of(item: Field) -> Any:
    """A dataclass field's default value."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def options(section: type = Config, prefix: str = "", of: Config | None = None) -> Iterator[Option]:
    """Every option of the schema in its order, sub-sections after the section they belong to.

    of: the configuration whose codec and objective are meant; None for the default ones.
    """
    kinds = {
        item.name: type_of(
            item, section, None if of is None or prefix else told(item.name, vars(getattr(of, item.name)))
        )
        for item in fields(section)
    }
    for item in sorted(fields(section), key=lambda item: is_dataclass(kinds[item.name])):
        if is_dataclass(kinds[item.name]):
            yield from options(kinds[item.name], f"{prefix}{item.name}.", of)
        else:
            known = (
                sections.names(prefix[:-1])
                if sections.KINDS.get(prefix[:-1]) == item.name
                else item.metadata["choices"]
            )
            known = known() if callable(known) else known
            yield Option(
                prefix + item.name,
                kinds[item.name],
                default_of(item),
                item.metadata["help"],
                known,
                item.metadata["path"],
            )


def told(section: str, values: Any) -> Any:
    """Which one of a section that others own is meant by its options' values; None for other sections."""
    return values.get(sections.KINDS.get(section)) if isinstance(values, dict) else None


@lru_cache(maxsize=64)
def _hints(section: type) -> dict[str, Any]:
    # Resolving them takes longer than all rules together, and planners check thousands of layouts.
    return get_type_hints(section)


def type_of(item: Field, section: type, name: Any = None) -> Any:
    """The type of a field of a section; of a section that others own, the one of this name (`sections.find`)."""
    kind = item.metadata.get("kind")
    return _hints(section)[item.name] if kind is None else sections.find(kind, name).options


def value_of(config: Config, name: str) -> Any:
    """The value of a dotted option name."""
    value: Any = config
    for key in name.split("."):
        value = getattr(value, key)
    return value
