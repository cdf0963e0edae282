"""Mistakes of the user, told apart from our own."""

from __future__ import annotations


class UserError(ValueError):
    """What a user can mend: its message alone says what, the value, what was expected and how to fix it.

    Commands print it as one line and end with 2.  Every other exception, a ValueError of ours or of a library included, is a fault and keeps its traceback.
    """
