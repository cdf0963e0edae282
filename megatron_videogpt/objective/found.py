"""Which objectives there are: the packages beside this file, and those that installed distributions name.

A distribution names its own under the entry point group ``megatron_videogpt.objectives``, as ``name = "package"``.
Either way the package's module `options` enters the section and rules of its options (`config.sections.enter`);
`objective/build.py` says what the others are for.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from ..config.entry_points import enter_outside


def enter_objectives() -> None:
    """Import the options of every objective; the order is that of their names, so the same everywhere.

    Raises:
        UserError: as `config.entry_points.enter_outside`.
    """
    folder = Path(__file__).parent
    for package in sorted(item.name for item in pkgutil.iter_modules([str(folder)]) if item.ispkg):
        importlib.import_module(f"{__package__}.{package}.options")
    enter_outside("objective")
