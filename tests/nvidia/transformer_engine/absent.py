"""What megatron-core imports or derives from, and this stand-in does not do."""

from __future__ import annotations

from typing import Any


def absent(name: str, *bases: type) -> type:
    """A class that cannot be instantiated."""

    def refuse(self: object, *positional: Any, **keywords: Any) -> None:
        raise NotImplementedError(f"transformer_engine's {name} is not modelled")

    return type(name, bases or (object,), {"__init__": refuse})


def refused(name: str) -> Any:
    """A function that cannot be called."""

    def refuse(*positional: Any, **keywords: Any) -> None:
        raise NotImplementedError(f"transformer_engine's {name} is not modelled")

    return refuse
