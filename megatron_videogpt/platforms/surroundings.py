"""What libraries change around them as they are imported, put back: log handlers, warning filters, sys.argv."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def kept_surroundings() -> Iterator[list[str]]:
    """Afterwards the root logger has the handlers, open, and the level, loggers speak or are silent, and warnings go
    where they did before, whatever is imported inside.  Gives a list, which has the warnings of the block when it is
    over.
    """
    root, known = logging.getLogger(), logging.Logger.manager.loggerDict.values()
    handlers, level = list(root.handlers), root.level
    silent = {logger: logger.disabled for logger in known if isinstance(logger, logging.Logger)}
    said: list[str] = []
    for handler in handlers:
        # logging.config closes all that there are: a MemoryHandler would forget where it writes.
        handler.close = lambda: None  # type: ignore[method-assign]
    try:
        # Also what shows a warning: logging takes them in where a run has its logs.
        with warnings.catch_warnings(record=True) as caught:
            yield said
    finally:
        said += [f"{warning.category.__name__}: {' '.join(str(warning.message).split())}" for warning in caught]
        for handler in handlers:
            del handler.close
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger, disabled in silent.items():
            logger.disabled = disabled


@contextlib.contextmanager
def program_name_only() -> Iterator[None]:
    """sys.argv without our arguments, for what parses it as it is imported; afterwards as it was."""
    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = before
