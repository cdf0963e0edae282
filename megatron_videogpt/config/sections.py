"""Sections of a configuration that others own: the options and rules of a codec, or of an objective, under its name.

A module that brings one enters it here when it is imported (`megatron_videogpt/__init__.py` sees to that), so that
this folder knows none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KINDS = {"codec": "name", "condition": "kind", "objective": "name"}
"""Sections of which a configuration has one of several, and the option of theirs that tells which."""
AXES = frozenset({"tensor", "sequence", "context", "pipeline", "virtual_pipeline"})
"""What `parallel` may split a model over, beside the replicas of data parallelism."""


@dataclass(frozen=True)
class Section:
    """options: a frozen dataclass with `option`s, the telling one among them; rules: adds to a `problems.Report` what
    is wrong with them; package: the Python package whose modules the name stands for; axes: of `AXES`, those that it
    works under; conditions: of `[condition]` what an objective makes use of: class, text (features), ids (of texts),
    frames; sampling: of `[sample]` the same, beside what every sampler goes by; None of an objective that does not say;
    shrink: makes its options and what depends on them small (`shrink.Shrinking`); None where there is nothing to do.
    """

    options: type
    rules: Callable[[Any], None]
    package: str = ""
    axes: frozenset[str] = frozenset()
    conditions: frozenset[str] = frozenset()
    sampling: frozenset[str] | None = None
    shrink: Callable[[Any], None] | None = None


_run_rules: list[Callable[[Any], None]] = []
_entered: dict[str, dict[str, Section]] = {kind: {} for kind in KINDS}


def enter(
    kind: str,
    name: str,
    options: type,
    rules: Callable[[Any], None],
    package: str = "",
    axes: frozenset[str] = AXES,
    default: bool = False,
    conditions: frozenset[str] = frozenset(),
    sampling: frozenset[str] | None = None,
    shrink: Callable[[Any], None] | None = None,
) -> None:
    """Make a codec, a kind of condition or an objective known.  default: whether it is that of its section; else the
    first that is entered is.

    Raises:
        ValueError: another one has its name, or an axis is none of `AXES`.
    """
    if not axes <= AXES:
        raise ValueError(f"{kind} {name!r}: axes {sorted(axes - AXES)} are unknown; there are {sorted(AXES)}")
    known = _entered[kind].setdefault(name, Section(options, rules, package, axes, conditions, sampling, shrink))
    if known.options is not options:
        raise ValueError(f"{kind} {name!r} is entered twice: {known.options.__module__} and {options.__module__}")
    if default:
        _entered[kind] = {name: known, **_entered[kind]}


def enter_run_rules(rules: Callable[[Any], None]) -> None:
    """Rules on what a run brings to life, and so may import: `train` and `check` ask them, and nothing that only reads
    a configuration which came from elsewhere.  rules: adds to a `problems.Report`.
    """
    if rules not in _run_rules:
        _run_rules.append(rules)


def run_rules() -> tuple[Callable[[Any], None], ...]:
    """All of them."""
    return tuple(_run_rules)


def names(kind: str) -> tuple[str, ...]:
    """The known names of a kind, the default first."""
    return tuple(_entered[kind])


def described(kind: str) -> str:
    """The known names of a kind, and of those that other distributions brought their package."""
    ours = (__package__ or "").partition(".")[0]
    known = _entered[kind].items()
    foreign = {name: known.package.partition(".")[0] not in ("", ours) for name, known in known}
    return ", ".join(f"{name} (from {known.package})" if foreign[name] else name for name, known in known)


def find(kind: str, name: Any = None) -> Section:
    """The section of this name; of the default where it is not known (the check of names says so)."""
    known = _entered[kind]
    return known[name] if isinstance(name, str) and name in known else next(iter(known.values()))


def not_sampled_with(name: Any) -> frozenset[str]:
    """Options of `[sample]` that another objective makes use of and this one does not."""
    own = find("objective", name).sampling
    others = frozenset[str]().union(*(known.sampling or () for known in _entered["objective"].values()))
    return frozenset() if own is None else others - own


def section(kind: str) -> Any:
    """A dataclass field that holds a section of this kind."""
    return field(default_factory=lambda: find(kind).options(), metadata={"kind": kind})


def option(
    default: Any, help: str, choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (), path: bool = False
) -> Any:
    """A dataclass field with its help text and the names it may take (each element, for a list), or a function that
    gives them; lists and dicts of TOML become tuples and fresh dicts.

    path: whether it is a path, or a dict whose keys are (`config.paths`).
    """
    metadata = {"help": help, "choices": choices, "path": path}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)
