"""What was done to this stand-in, in order, for the tests."""

from __future__ import annotations

import sys

seen: list[str] = []


def note(what: str) -> None:
    """Remember it, and whether megatron-core was there already."""
    seen.append(what + (" after megatron.core" if "megatron.core" in sys.modules else ""))
