"""TOML files and `section.option=value` overrides -> `Config`, and back.

A file may start from another one: ``base = "other.toml"`` (relative to the file).  Sections merge option by option; an
option that is itself a table (`model.rope_scaling`) is replaced whole.  Every mistake of a file and its overrides is
reported in one `ConfigError`.  Paths: `config.paths`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from . import paths
from .options import default_of, options, told, type_of
from .overrides import plain, set_value, split, tomllib
from .schema import Config
from .toml import show, to_toml
from .values import Wrong, convert

T = TypeVar("T")


class ConfigError(UserError):
    """What is wrong with a configuration: `problems` has one line each, naming option, value, constraint and fix."""

    on_every_rank = True

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `overrides` in order.  For files that a run wrote: their paths were expanded then.

    Raises `ConfigError` with all problems of both; rules that span options: `config.check`.
    """
    config, problems, _ = read_config(path, overrides, paths.stored)
    if problems:
        raise ConfigError(problems)
    return config


def read_config(
    path: str | Path, overrides: Sequence[str] = (), change: Callable[[str], str] = paths.expand
) -> tuple[Config, list[str], set[str]]:
    """As `load_config` for files that users write, but returns what could be read (defaults elsewhere), the problems,
    and the names of the options they concern.

    change: what is done with paths.

    Raises `ConfigError` only for files that cannot be read at all, where looking at options would be guesswork.
    """
    values, unreadable = _read_file(Path(path), (), change)
    return _overridden(values, unreadable, overrides, change)


def read_table(
    values: dict[str, Any], path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Config, list[str], set[str]]:
    """As `read_config`, of what a file `path` holds beside tables of another kind, which the caller has taken out."""
    found, unreadable = _with_base(dict(values), Path(path), (), paths.expand)
    return _overridden(found, unreadable, overrides, paths.expand)


def parse_file(path: str | Path) -> dict[str, Any]:
    """A TOML file as it stands, without its base; raises `ConfigError`."""
    values, unreadable = _parse(Path(path), ())
    if unreadable:
        raise ConfigError(unreadable)
    return values


def build_section(kind: type[T], values: dict[str, Any], prefix: str) -> tuple[T, list[str], set[str]]:
    """A dataclass of `sections.option` fields from a table that is no section of `Config`: what could be read, the
    problems, and the options they concern.

    prefix: before the options' names, such as "ladder.".
    """
    problems: list[str] = []
    broken: set[str] = set()
    names = tuple(option.name for option in options(kind, prefix))
    made = _build(kind, values, prefix, _Reading(problems, broken, paths.expand, names))
    return made, problems, broken


def _overridden(
    values: dict[str, Any], unreadable: list[str], overrides: Sequence[str], change: Callable[[str], str]
) -> tuple[Config, list[str], set[str]]:
    pairs, problems = split(overrides)
    if unreadable:
        raise ConfigError(unreadable + problems)
    for name, value in pairs:
        set_value(values, name.split("."), value)
    broken: set[str] = set()
    config = _build(Config, values, "", _Reading(problems, broken, change))
    return config, problems, broken


def config_from_dict(values: dict[str, Any]) -> Config:
    """Nested dict (section -> option -> value, as a TOML file reads) -> Config, paths as they stand; raises
    `ConfigError`.
    """
    problems: list[str] = []
    config = _build(Config, values, "", _Reading(problems, set(), str))
    if problems:
        raise ConfigError(problems)
    return config


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["train.steps=5", "data.physics.size=64"]`` -> nested dict.  Values are TOML; what is not TOML is taken as
    text.  Raises `ConfigError`.
    """
    pairs, problems = split(overrides)
    if problems:
        raise ConfigError(problems)
    nested: dict[str, Any] = {}
    for name, value in pairs:
        set_value(nested, name.split("."), value)
    return dict(plain(nested))


def _read_file(path: Path, seen: tuple[Path, ...], change: Callable[[str], str]) -> tuple[dict[str, Any], list[str]]:
    """A file's values over those of its bases, and what was wrong with the files themselves."""
    if path.resolve() in seen:
        return {}, [
            f'{path}: base = "..." must not lead back to the same file; the chain is '
            f"{' -> '.join(p.name for p in (*seen, path.resolve()))}: remove one base"
        ]
    values, problems = _parse(path, seen)
    return (values, problems) if problems else _with_base(values, path, seen, change)


def _parse(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    """A file's own values, or what is wrong with it; seen: the files that it is the base of."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig")), []
    except FileNotFoundError:
        used_by = f' (the base of {seen[-1]}; "base" is relative to that file)' if seen else ""
        return {}, [
            f"{path}: there is no such configuration file{used_by}; check the path, examples are in examples/videogpt/"
        ]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [
            f"{path}: cannot be read as a text file ({error}); give the path of a .toml file that is saved as UTF-8"
        ]
    except tomllib.TOMLDecodeError as error:
        return {}, [f"{path}: must be valid TOML, but {error}; texts need quotes, sections look like [train]"]


def _with_base(
    values: dict[str, Any], path: Path, seen: tuple[Path, ...], change: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """A file's own values over those of the base that they name."""
    base = values.pop("base", None)
    if base is None:
        return values, []
    if not isinstance(base, str):
        return values, [f'{path}: base = {base!r} must be the name of one TOML file; write base = "base.toml"']
    try:
        below, problems = _read_file(path.parent / change(base), (*seen, path.resolve()), change)
    except UserError as error:
        return values, [f"{path}: base = {show(base)}: {error}"]
    return merge_tables(Config, below, values), problems


def merge_tables(section: Any, below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values of a section, those above before those below.  Sections in it are merged; a table that is a value, as
    `model.rope_scaling`, is replaced.
    """
    kinds = {item.name: type_of(item, section) for item in fields(section)}
    merged = dict(below)
    for key, value in above.items():
        kind, before = kinds.get(key), below.get(key)
        sections = isinstance(value, dict) and isinstance(before, dict) and is_dataclass(kind)
        merged[key] = merge_tables(kind, before or {}, value) if sections else value
    return merged


@dataclass(frozen=True)
class _Reading:
    """problems: one line each; broken: the options they concern, which keep their defaults; change: done with paths;
    names: of all options, None for those of `Config`.
    """

    problems: list[str]
    broken: set[str]
    change: Callable[[str], str]
    names: tuple[str, ...] | None = None

    def wrong(self, name: str, line: str) -> None:
        self.problems.append(line)
        self.broken.add(name)


def _build(section: Any, values: dict[str, Any], prefix: str, reading: _Reading) -> Any:
    """Dict -> dataclass; what is wrong goes to `reading`."""
    items = {item.name: item for item in fields(section)}
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        kind = None if key not in items else type_of(items[key], section, told(key, plain(value, str)))
        if kind is None:
            reading.problems.append(_unknown(name, plain(value), reading.names))
        elif is_dataclass(kind):
            if isinstance(value, dict):
                known[key] = _build(kind, value, f"{name}.", reading)
            else:
                reading.problems.append(
                    f"{name} = {show(plain(value))}: must be a section with options; write [{name}] and the options "
                    "below it"
                )
        else:
            given = plain(value, kind)
            try:
                known[key] = convert(given, kind)
                if items[key].metadata["path"]:
                    known[key] = paths.each(known[key], reading.change)
            except Wrong as wrong:
                text = items[key].metadata["help"]
                example = _quoted(given) if kind is str else to_toml(default_of(items[key]))
                reading.wrong(
                    name, f"{name} = {show(given)}: must be {wrong}; write for example {name}={example} ({text})"
                )
            except UserError as error:
                known.pop(key)
                reading.wrong(name, f"{name} = {show(given)}: {error}")
    return section(**known)


def _quoted(value: Any) -> str:
    """What was meant as text, in quotes."""
    return to_toml(value if isinstance(value, str) else show(value))


def _unknown(name: str, value: Any, known: tuple[str, ...] | None = None) -> str:
    """The line for an unknown section or option: the same name elsewhere, else the closest spelling.  known: names of
    all options, None for those of `Config`.
    """
    if isinstance(value, dict) and known is None:
        sections = sorted({option.name.rpartition(".")[0] for option in options()})
        close = difflib.get_close_matches(name, sections, n=1)
        return f"[{name}]: there is no such section; " + (
            f"did you mean [{close[0]}]?" if close else f"the sections are {', '.join(sections)}"
        )
    names = list(known) if known is not None else [option.name for option in options()]
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
