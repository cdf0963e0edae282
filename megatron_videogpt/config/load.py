"""TOML files and `section.option=value` overrides -> `Config`, and back.

A file may start from another one: ``base = "other.toml"`` (relative to the file).  Sections merge option by option; an
option that is itself a table (`model.rope_scaling`) is replaced whole.  Every mistake of a file and its overrides is
reported in one `ConfigError`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import UserError
from . import sections
from .schema import Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table {...}"}
BARE_KEY = "[A-Za-z0-9_-]+"
PLURALS = {int: "whole numbers", float: "numbers", str: "texts in quotes"}


class ConfigError(UserError):
    """What is wrong with a configuration: `problems` has one line each, naming option, value, constraint and fix."""

    on_every_rank = True

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Option:
    """One option of the schema: full dotted name, type, default, help text and the names it may take (empty: any)."""

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]


def default_of(item: Field) -> Any:
    """A dataclass field's default value."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def options(section: type = Config, prefix: str = "", of: Config | None = None) -> Iterator[Option]:
    """Every option of the schema in its order, sub-sections after the section they belong to.

    of: the configuration whose codec and objective are meant; None for the default ones.
    """
    kinds = {
        item.name: _type_of(item, section, None if of is None or prefix else vars(getattr(of, item.name)).get("name"))
        for item in fields(section)
    }
    for item in sorted(fields(section), key=lambda item: is_dataclass(kinds[item.name])):
        if is_dataclass(kinds[item.name]):
            yield from options(kinds[item.name], f"{prefix}{item.name}.", of)
        else:
            known = (
                sections.names(prefix[:-1])
                if item.name == "name" and prefix[:-1] in sections.KINDS
                else item.metadata["choices"]
            )
            yield Option(prefix + item.name, kinds[item.name], default_of(item), item.metadata["help"], known)


def _type_of(item: Field, section: type, name: Any = None) -> Any:
    """The type of a field of a section; of a section that others own, the one of this name (`sections.find`)."""
    kind = item.metadata.get("kind")
    return get_type_hints(section)[item.name] if kind is None else sections.find(kind, name).options


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
    kinds = {item.name: _type_of(item, section) for item in fields(section)}
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
        kind = (
            None
            if key not in items
            else _type_of(items[key], section, value.get("name") if isinstance(value, dict) else None)
        )
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


def show(value: Any) -> str:
    """A value as it is written in TOML, shortened for messages."""
    text = to_toml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_toml(value: Any) -> str:
    """One value in TOML's syntax (dates of a file that were never an option's type fall back to text)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(to_toml(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{key if re.fullmatch(BARE_KEY, key) else _quote(key)} = {to_toml(entry)}"
                for key, entry in value.items()
            )
            + "}"
        )
    return _quote(str(value))


def _quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, but code points beyond 16 bits must stay as they are, and DEL must not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def config_to_toml(config: Config) -> str:
    """A complete TOML file, with the help texts as comments, that `load_config` reads back as an equal `Config`."""
    lines: list[str] = []
    section = ""
    for option in options(of=config):
        prefix, _, leaf = option.name.rpartition(".")
        if prefix != section:
            lines += ["", f"[{prefix}]"]
            section = prefix
        lines.append(f"{leaf} = {to_toml(value_of(config, option.name))}  # {option.help}")
    return "\n".join(lines[1:]) + "\n"


def value_of(config: Config, name: str) -> Any:
    """The value of a dotted option name."""
    value: Any = config
    for key in name.split("."):
        value = getattr(value, key)
    return value
