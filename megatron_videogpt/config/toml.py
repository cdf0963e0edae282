"""Values and whole configurations as TOML text."""

from __future__ import annotations

import json
import re
from datetime import date, time
from typing import Any

from . import paths
from .options import options, value_of
from .schema import Config

BARE_KEY = "[A-Za-z0-9_-]+"


def show(value: Any) -> str:
    """A value as it is written in TOML, shortened for messages."""
    text = str(value) if isinstance(value, (date, time)) else to_toml(value)
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
        value = value_of(config, option.name)
        # So that `$` in a path stays where a user gives this file to a new run, too.
        written = paths.each(value, paths.literal) if option.path else value
        lines.append(f"{leaf} = {to_toml(written)}  # {option.help}")
    return "\n".join(lines[1:]) + "\n"
