"""`train.callbacks`: import paths and arguments -> callbacks, and what is wrong with them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..config import paths
from ..config.problems import Report
from ..config.sections import enter_run_rules
from ..config.toml import show
from ..config.values import WORDS, Wrong, convert
from ..errors import UserError, shortened
from .base import Callback

OPTION = "train.callbacks"


def build(entries: tuple[dict[str, Any], ...]) -> dict[str, Callback]:
    """The callbacks of a configuration that has been checked, in its order, by what they are called in messages: their
    import path, with a number where there are several of a class.

    Raises:
        UserError: one line for the first that cannot be made.
    """
    made: dict[str, Callback] = {}
    for entry in entries:
        callback = _made(entry)
        name, number = entry["name"], 2
        while name in made:
            name, number = f"{entry['name']} ({number})", number + 1
        made[name] = callback
    return made


def check_callbacks(report: Report) -> None:
    """One line for each entry that is no callback, or cannot do its work in such a run."""
    for entry in report.config.train.callbacks if report.sound(OPTION) else ():
        try:
            callback = _made(entry)
            # What it looks at may be wrong itself.
            if not report.lines:
                callback.check(report.config)
        except UserError as error:
            report.lines.append(f"{OPTION} = {show(entry.get('name', entry))}: {error}")
            report.broken.add(OPTION)


def _made(entry: dict[str, Any]) -> Callback:
    given = dict(entry)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise UserError('must say name = "package.module.Class"; its other entries are arguments of the class')
    made: Callback = (kind := _class(name))(**_arguments(kind, given))
    return made


def _class(name: str) -> type[Callback]:
    module, _, leaf = name.rpartition(".")
    if not module:
        raise UserError("must be the import path of a class, package.module.Class")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  (whatever the module does as it is imported)
        missing = str(getattr(error, "name", None)).partition(".")[0]
        fix = f"; {missing} must be installed, or in a folder of PYTHONPATH"
        fix = fix if isinstance(error, ModuleNotFoundError) else ""
        raise UserError(f"{module} cannot be imported ({type(error).__name__}: {shortened(error)}){fix}") from error
    kind = getattr(found, leaf, None)
    if kind is None:
        classes = [known for known, value in vars(found).items() if _is_callback(value) and value is not Callback]
        close = difflib.get_close_matches(leaf, classes, n=1) or classes
        hint = f"did you mean {module}.{close[0]}?" if len(close) == 1 else f"it has {', '.join(classes) or 'none'}"
        raise UserError(f"{module} has no {leaf}; {hint}")
    if not _is_callback(kind):
        raise UserError("is no callback; expected a class that inherits megatron_videogpt.callbacks.Callback")
    return kind


def _is_callback(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Callback)


def _arguments(kind: type[Callback], given: dict[str, Any]) -> dict[str, Any]:
    """What the constructor gets, each of the declared type."""
    known = inspect.signature(kind).parameters
    named = [name for name, one in known.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes = ", ".join(named) or "no arguments"
    free = any(one.kind is one.VAR_KEYWORD for one in known.values())
    for name in given:
        if name not in named and not free:
            raise UserError(f"has no argument {name}; it takes {takes}")
    missing = [name for name in named if known[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        raise UserError(f"needs {' and '.join(missing)}; write {{name = ..., {missing[0]} = ...}}; it takes {takes}")
    types = _types(kind)
    converted = {}
    for name, value in given.items():
        try:
            converted[name] = _convert(value, types.get(name, Any))
        except Wrong as wrong:
            raise UserError(f"{name} = {show(value)} must be {wrong}") from None
        except UserError as error:
            raise UserError(f"{name} = {show(value)}: {error}") from None
    return converted


def _types(kind: type[Callback]) -> dict[str, Any]:
    """Declared types of the constructor's arguments; of names that cannot be looked up (for type checkers alone), none.

    A dataclass is made with its own module's names, not with those of `dataclasses`.
    """
    names = vars(sys.modules[kind.__module__])
    try:
        return get_type_hints(kind.__init__, globalns=names)
    except (NameError, TypeError):
        return {}


def _convert(value: Any, kind: Any) -> Any:
    """The value of an argument of a declared type; what TOML has no word for is left to the class."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not type(None)]
        for one in kinds:
            try:
                return _convert(value, one)
            except Wrong as wrong:
                if one is kinds[-1]:
                    raise Wrong(str(wrong)) from None
    if origin is Literal:
        if value not in inner:
            raise Wrong(f"one of {', '.join(map(str, inner))}")
        return value
    if kind is Path:
        return Path(paths.expand(convert(value, str)))
    if origin is list:
        return list(convert(value, GenericAlias(tuple, (inner[0], ...))))
    if kind in WORDS or (origin is tuple and all(one in WORDS or one is Ellipsis for one in inner)):
        return convert(value, kind)
    return value


enter_run_rules(check_callbacks)
