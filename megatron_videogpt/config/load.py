"""TOML files and `section.option=value` overrides -> `Config`, and back.

A file may start from another one: ``base = "other.toml"`` (relative to the file).  Sections merge option by option; an
option that is itself a table (`model.rope_scaling`) is replaced whole.  Every mistake of a file and its overrides is
reported in one `ConfigError`.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from ..errors import UserError
from .options import default_of, options, told, type_of
from .schema import Config
from .toml import show, to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table {...}"}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts in quotes"}


class ConfigError(UserError):
    """What is wrong with a configuration: `problems` has one line each, naming option, value, constraint and fix."""

    on_every_rank = True

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `overrides` in order.  Raises `ConfigError` with all problems of both; rules that span
    options: `config.check`.
    """
    config, problems, _ = read_config(path, overrides)
    if problems:
        raise ConfigError(problems)
    return config


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str], set[str]]:
    """As `load_config`, but returns what could be read (defaults elsewhere), the problems, and the names of the options
    they concern.

    Raises `ConfigError` only for files that cannot be read at all, where looking at options would be guesswork.
    """
    values, unreadable = _read_file(Path(path), ())
    pairs, problems = _split_overrides(overrides)
    if unreadable:
        raise ConfigError(unreadable + problems)
    for name, value in pairs:
        _set(values, name.split("."), value)
    broken: set[str] = set()
    config = _build(Config, values, "", problems, broken)
    return config, problems, broken


def config_from_dict(values: dict[str, Any]) -> Config:
    """Nested dict (section -> option -> value, as a TOML file reads) -> Config; raises `ConfigError`."""
    problems: list[str] = []
    config = _build(Config, values, "", problems, set())
    if problems:
        raise ConfigError(problems)
    return config


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["train.steps=5", "data.physics.size=64"]`` -> nested dict.  Values are TOML; what is not TOML is taken as
    text.  Raises `ConfigError`.
    """
    pairs, problems = _split_overrides(overrides)
    if problems:
        raise ConfigError(problems)
    nested: dict[str, Any] = {}
    for name, value in pairs:
        _set(nested, name.split("."), value)
    return nested


def _split_overrides(overrides: Sequence[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    pairs, problems = [], []
    for text in overrides:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or "." not in name or not all(name.split(".")):
            problems.append(
                f"{text!r}: an override must look like section.option=value; write for example train.steps=500"
            )
        else:
            pairs.append((name, _parse_value(value.strip())))
    return pairs, problems


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested key; a non-table in the way is replaced, and the type check then names the problem."""
    for key in path[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[path[-1]] = value


def _read_file(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    """A file's values over those of its bases, and what was wrong with the files themselves."""
    resolved = path.resolve()
    if resolved in seen:
        return {}, [
            f'{path}: base = "..." must not lead back to the same file; the chain is '
            f"{' -> '.join(p.name for p in (*seen, resolved))}: remove one base"
        ]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        used_by = f' (the base of {seen[-1]}; "base" is relative to that file)' if seen else ""
        return {}, [
            f"{path}: there is no such configuration file{used_by}; check the path, examples are in examples/videogpt/"
        ]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read as a text file ({error}); give the path of a .toml file"]
    except tomllib.TOMLDecodeError as error:
        return {}, [f"{path}: must be valid TOML, but {error}; texts need quotes, sections look like [train]"]
    base = values.pop("base", None)
    if base is None:
        return values, []
    if not isinstance(base, str):
        return values, [f'{path}: base = {base!r} must be the name of one TOML file; write base = "base.toml"']
    below, problems = _read_file(path.parent / base, (*seen, resolved))
    return _merge(Config, below, values), problems


def _merge(section: Any, below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    kinds = {item.name: type_of(item, section) for item in fields(section)}
    merged = dict(below)
    for key, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(kinds[key], below[key], value) if both_tables and is_dataclass(kinds.get(key)) else value
    return merged


def _build(section: Any, values: dict[str, Any], prefix: str, problems: list[str], broken: set[str]) -> Any:
    """Dict -> dataclass; mistakes go to `problems`, the options they concern to `broken` and keep their defaults."""
    items = {item.name: item for item in fields(section)}
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        kind = None if key not in items else type_of(items[key], section, told(key, value))
        if kind is None:
            problems.append(_unknown(name, value))
        elif is_dataclass(kind):
            if isinstance(value, dict):
                known[key] = _build(kind, value, f"{name}.", problems, broken)
            else:
                problems.append(
                    f"{name} = {show(value)}: must be a section with options; write [{name}] and the options below it"
                )
        else:
            try:
                known[key] = _convert(value, kind)
            except _Wrong as wrong:
                example = to_toml(default_of(items[key]))
                problems.append(
                    f"{name} = {show(value)}: must be {wrong}; write for example {name}={example} "
                    f"({items[key].metadata['help']})"
                )
                broken.add(name)
    return section(**known)


class _Wrong(Exception):
    """A value of another type: the message says what was expected."""


def _convert(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in WORDS:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Wrong(WORDS[kind])
        if kind is float and not math.isfinite(value):
            raise _Wrong("a finite number")
        return value
    element, *rest = get_args(kind)
    length = None if rest == [Ellipsis] else 1 + len(rest)
    of = PLURALS[element] if element in PLURALS else f"lists of {len(get_args(element))} numbers"
    expected = f"a list of {'' if length is None else f'{length} '}{of}"
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        raise _Wrong(expected)
    try:
        return tuple(_convert(entry, element) for entry in value)
    except _Wrong:
        raise _Wrong(expected) from None


def _unknown(name: str, value: Any) -> str:
    """The line for an unknown section or option: the same name elsewhere, else the closest spelling."""
    if isinstance(value, dict):
        sections = sorted({option.name.rpartition(".")[0] for option in options()})
        close = difflib.get_close_matches(name, sections, n=1)
        return f"[{name}]: there is no such section; " + (
            f"did you mean [{close[0]}]?" if close else f"the sections are {', '.join(sections)}"
        )
    names = [option.name for option in options()]
    section, _, leaf = name.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in names if known.rpartition(".")[0] == section}
    close = [known for known in names if known.rpartition(".")[2] == leaf]
    close = (
        close
        or [siblings[match] for match in difflib.get_close_matches(leaf, siblings, n=1)]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    )
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif siblings:
        hint = f"the options of [{section}] are {', '.join(siblings)}"
    else:
        hint = "`python -m megatron_videogpt options` lists all of them"
    return f"{name} = {show(value)}: there is no such option; {hint}"
