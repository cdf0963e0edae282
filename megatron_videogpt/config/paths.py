"""Paths as users write them: `~`, `~user`, `$NAME` and `${NAME}` mean the same in a configuration's files, in overrides
and in the arguments of commands.

`$$` is a `$` of a name (`$$$$` in an argument behind torchrun, which makes one of two), and a name that begins with `~`
is written `./~name`.  What has "://" is a URL and stays as it
is.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})", re.ASCII)


def expand(text: str) -> str:
    """The path that a user means.

    Raises:
        UserError: a variable that is not set or a user that is not known; the message begins behind the value.
    """
    if "://" in text:
        return text
    # Of the home folder and of values nothing is expanded again: a folder may be called a$b.
    first, slash, rest = text.partition("/") if text.startswith("~") else ("", "", text)
    return (_home(first) if first else "") + slash + VARIABLE.sub(_value, rest)


def _home(name: str) -> str:
    home = os.path.expanduser(name)
    if home == name:
        fix = "set HOME" if name == "~" else "give the whole path"
        raise UserError(f"the home folder of {name} is not known; {fix}, or write ./{name} for a folder of that name")
    return home.rstrip("/")


def _value(found: re.Match[str]) -> str:
    if found["dollar"]:
        return "$"
    name = found["bare"] or found["braced"]
    value = os.environ.get(name, "")
    if not value:
        state = "empty" if name in os.environ else "not set"
        raise UserError(f"the environment variable {name} is {state}; set it, or write $$ for a $ of the name")
    return value


def literal(path: str) -> str:
    """How a path that is meant as it stands is written; `stored` and `expand` give it back."""
    return path if "://" in path else path.replace("$", "$$")


def stored(text: str) -> str:
    """The path that `literal` wrote.  Where files of earlier releases have a `$`, it stays."""
    return text if "://" in text else text.replace("$$", "$")


def each(value: Any, change: Callable[[str], str]) -> Any:
    """An option's value with its path changed, or the paths that are a table's keys.

    Raises:
        UserError: two keys become one; or what `change` raises.
    """
    if not isinstance(value, Mapping):
        return change(value)
    changed: dict[str, Any] = {}
    for key, entry in value.items():
        path = change(key)
        if path in changed:
            raise UserError(f"two of its paths are the same folder, {path}; name it once")
        changed[path] = entry
    return changed


def place(text: str) -> str:
    """`type=` of an argument that takes a path or a URL.  What is there as it stands is meant so: shells hand over the
    names of files, and these may have a `$`.
    """
    if os.path.lexists(text):
        return text
    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def path(text: str) -> Path:
    """`type=` of an argument that takes a path: `place`."""
    return Path(place(text))


def obstacle(folder: Path) -> str:
    """Why a folder cannot be made, or nothing be written there, with the fix; "" when nothing stands in the way."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if there.is_symlink() and not there.exists():
        return f"{there} is a link to {os.readlink(there)}, which is not there; make that folder, or remove the link"
    if not there.is_dir():
        return f"{there} is a file, not a folder; give another path, or move the file away"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"nothing can be written into {there} by this user (id {os.getuid()}); give a folder that can be"
    return ""


def file_obstacle(file: Path) -> str:
    """The same for a file in a folder in which there is no obstacle."""
    if file.is_symlink() and not file.exists():
        return f"its {file.name} is a link to {os.readlink(file)}, which is not there; remove the link"
    if file.is_dir():
        return f"its {file.name} is a folder, not a file; move it away"
    if file.exists() and not os.access(file, os.W_OK):
        return f"its {file.name} cannot be written by this user (id {os.getuid()}); give another folder, or its rights"
    return ""
