"""The Python files of an exported folder: those of a stand-alone model, and what they import of the common ones."""

from __future__ import annotations

import ast
from pathlib import Path

from .. import hub
from ..hub.common import tiny_codec as tiny_module

COMMON = "common"
"""The folder of `hub/` that the others import from; in an exported folder all files lie side by side."""


def copy_code(name: str, folder: Path, tiny_codec: bool = False) -> None:
    """Copy the files of the folder `name` of `hub/` into one that stands alone.

    tiny_codec: whether its VAE is the tiny codec, whose code is imported by its name alone.
    """
    home = Path(hub.__file__).parent
    own = [path for path in sorted((home / name).glob("*.py")) if path.name != "__init__.py"]
    for path in [*own, *needed(own, home / COMMON), *([Path(tiny_module.__file__)] if tiny_codec else [])]:
        text = path.read_text(encoding="utf-8").replace("from " + f"..{COMMON}.", "from .")
        (folder / path.name).write_text(text, encoding="utf-8")


def needed(files: list[Path], common: Path) -> list[Path]:
    """The files of the folder `common` that `files` import, and those that these import in turn, by name."""
    found: set[Path] = set()
    waiting = [(path, 2) for path in files]
    while waiting:
        path, level = waiting.pop()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level != level or node.module is None:
                continue
            place = common / f"{node.module.removeprefix(f'{COMMON}.')}.py"
            if place not in found:
                found.add(place)
                waiting.append((place, 1))
    return sorted(found)
