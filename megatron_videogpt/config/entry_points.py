"""What other distributions bring, by the entry points of their metadata: ``name = "package"``.

The package's module `options` enters the section and rules of its options (`sections.enter`) as it is imported.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points

from ..errors import UserError


def enter_outside(kind: str) -> None:
    """Import the options of every objective or codec under the group ``megatron_videogpt.objectives`` or ``.codecs``;
    the order is that of their names, so the same everywhere.

    Raises:
        UserError: one line that names the distribution whose options cannot be imported, or have a name that is taken.
    """
    for point in sorted(entry_points(group=f"megatron_videogpt.{kind}s"), key=lambda point: (point.name, point.value)):
        _enter(kind, point)


def _enter(kind: str, point: EntryPoint) -> None:
    try:
        importlib.import_module(f"{point.value}.options")
    except (ImportError, ValueError) as error:
        owner = point.dist.name if point.dist is not None else "an installed distribution"
        raise UserError(
            f"{kind} {point.name!r} of {owner}: {point.value}.options cannot be used ({error}); mend it, or "
            f"remove it with pip uninstall {owner}"
        ) from error
