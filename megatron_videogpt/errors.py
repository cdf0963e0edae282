"""Whose mistake an exception is: the user's, our own, or another rank's."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence


class UserError(ValueError):
    """What a user can mend: its message alone says what, the value, what was expected and how to fix it.

    Commands print it as one line and end with 2.  Every other exception, a ValueError of ours or of a library
    included, is a fault and keeps its traceback.
    """


class RunError(UserError):
    """Something a user can mend, raised with the same one line on every rank; only rank 0 prints it."""

    on_every_rank = True


class BadInput(Exception):
    """An input that cannot be used, named in one line: `data.bad.BadVideo`."""


class PeerFailed(Exception):
    """Another rank has failed and tells why; this one ends with it.

    rank: of the other one.
    """

    def __init__(self, rank: int, about: str) -> None:
        self.rank = rank
        super().__init__(about)


class Stopped(Exception):
    """A run was asked to stop before its first step, and ends on all ranks: no failure."""

    def __init__(self) -> None:
        said = "stopped before the first step of this start, as asked; there is nothing new to save"
        super().__init__(f"{said}; the same command goes on")


def is_user_error(error: BaseException) -> bool:
    """Whether the message alone says what to change: a UserError, a video that cannot be used, a full disk."""
    full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full_disk or isinstance(error, (UserError, BadInput))


def unusable(path: object, error: OSError) -> UserError:
    """To be raised where a file or folder that the user named cannot be opened, read or written."""
    return UserError(f"{path}: {error.strerror or error}")


def one_line(error: BaseException) -> str:
    """An exception as it is told: the message of a user's mistake, and of a fault its type as well."""
    text = " ".join(str(error).split())
    if is_user_error(error):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shortened(error: BaseException) -> str:
    """The message of a library's error in one line, cut to 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def lines_of(error: BaseException) -> Sequence[str]:
    """As `one_line`, a line for each problem of a configuration."""
    return getattr(error, "problems", None) or [one_line(error)]


def exit_code(error: Exception) -> int:
    """2, after a line on stderr for a user's mistake; any other exception is raised again.  For the end of a tool."""
    if not is_user_error(error):
        raise error
    for line in lines_of(error):
        print(f"error: {line}", file=sys.stderr, flush=True)
    return 2
