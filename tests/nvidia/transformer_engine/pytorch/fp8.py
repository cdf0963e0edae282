"""8-bit formats, which are never on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class FP8GlobalStateManager:
    """Whether they are on."""

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        """Never."""
        return False


@contextlib.contextmanager
def fp8_autocast(
    enabled: bool = True,
    calibrating: bool = False,
    fp8_recipe: Any = None,
    fp8_group: Any = None,
    _graph: bool = False,
) -> Iterator[None]:
    """Nothing, if it is not to be on."""
    if enabled:
        raise NotImplementedError("transformer_engine's fp8_autocast is not modelled")
    yield


@contextlib.contextmanager
def fp8_model_init(
    enabled: bool = True, recipe: Any = None, preserve_high_precision_init_val: bool = False
) -> Iterator[None]:
    """Nothing, if it is not to be on."""
    if enabled:
        raise NotImplementedError("transformer_engine's fp8_model_init is not modelled")
    yield
