"""Which objectives there are: the packages beside this file, and those that installed distributions name.

A distribution names its own under the entry point group ``megatron_videogpt.objectives``, as ``name = "package"``.
Either way the package's module `options` enters the section and rules of its options (`config.sections.enter`);
`objective/build.py` says what the others are for.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ..errors import UserError

GROUP = "megatron_videogpt.objectives"


def enter_objectives() -> None:
    """Import the options of every objective; the order is that of their names, so the same everywhere.

    Raises:
        UserError: one line that names the distribution whose objective cannot be imported, or has a name that is taken.
    """
    folder = Path(__file__).parent
    for package in sorted(item.name for item in pkgutil.iter_modules([str(folder)]) if item.ispkg):
        importlib.import_module(f"{__package__}.{package}.options")
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        _enter(point)


def _enter(point: EntryPoint) -> None:
    try:
        importlib.import_module(f"{point.value}.options")
    except (ImportError, ValueError) as error:
        owner = point.dist.name if point.dist is not None else "an installed distribution"
        raise UserError(
            f"objective {point.name!r} of {owner}: {point.value}.options cannot be used ({error}); mend it, or "
            f"remove it with pip uninstall {owner}"
        ) from error
