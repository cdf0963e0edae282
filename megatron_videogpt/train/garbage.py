"""Python's garbage collector on all ranks at the same steps: one that collects at its own time holds up all others, and
with many ranks one always does.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collected_every(steps: int) -> Iterator[Callable[[int], None]]:
    """Inside, garbage is collected when what this yields is called with a multiple of `steps`, and at no other time; 0
    leaves it to Python.

    All that exists before is left out of these collections: they then take milliseconds, although they look at every
    generation, without which whatever survived one of them would never be freed.
    """
    if not steps:
        yield lambda step: None
        return
    was_on = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()

    def collect(step: int) -> None:
        if step % steps == 0:
            gc.collect()

    try:
        yield collect
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
