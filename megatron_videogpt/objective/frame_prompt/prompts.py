"""How many of a sample's frames are its prompt, and how many follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data.order import splitmix64

STREAM = 0x70726F6D707473  # keeps this draw apart from other uses of a key


def prompt_lengths(keys: np.ndarray, frames: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """int64 [n]: per sample one of the ascending `lengths` that are below its number of frames, uniform, from its key
    alone; 0 where none is.

    keys, frames: int64 [n].  Uniform on 0..m-1 means to within a share m / 2**32.
    """
    below = np.searchsorted(np.array(lengths, dtype=np.int64), frames, side="left")
    draws = splitmix64(np.array(keys, dtype=np.int64).astype(np.uint64) ^ np.uint64(STREAM)) >> np.uint64(32)
    chosen = (draws.astype(np.int64) * below) >> 32
    return np.where(below > 0, np.array(lengths, dtype=np.int64)[chosen], 0)


def prompt_length(key: int, frames: int, lengths: Sequence[int]) -> int:
    """The same of one sample."""
    return int(prompt_lengths(np.array([key]), np.array([frames]), lengths)[0])
