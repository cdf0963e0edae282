"""What packing asks of the closed forms that an objective supplies.  No NumPy here: `objective/work.py` has the rest of
them, and `check` asks for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from .plans import Plans

Number = TypeVar("Number", float, "np.ndarray")


class SampleCounts(Protocol):
    """Tokens of each sample's sequence, and (query, key) pairs of it that attend; int64 [n]."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def pairs(self) -> np.ndarray: ...


class SampleWork(Protocol):
    """Of samples as they are planned."""

    @property
    def weights(self) -> tuple[float, float]:
        """Cost of a token and of an attended pair: FLOPs of a forward and backward pass."""
        ...

    @property
    def blank(self) -> int:
        """Tokens of what holds the place in a row without samples: a frame of `model.patch_size` squared latents."""
        ...

    @property
    def fingerprint(self) -> str:
        """What decides, beside a sample's plan, how many tokens and pairs it has."""
        ...

    def of(self, plans: Plans) -> SampleCounts:
        """Of each sample, exactly, whole arrays at once."""
        ...

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """int64 [n]: most tokens of a sample of so many frames, int64 [n].  sizes: heights and widths, int64 [n]."""
        ...

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """One more than the highest position in the longest sequence of so many frames; arguments as in `longest`, or
        whole numbers.
        """
        ...
