"""Which sample comes when: permutations, mixtures and buckets of similar cost, each a closed form of the sample's
number.

Nothing here depends on a random generator whose stream may change between versions: all randomness is splitmix64 of a
key and a counter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UserError

ROUNDS = 6  # of the Feistel network
LONGEST_PATTERN = 4096  # positions of a mixture's pattern: weights are met to 1/4096 or better
# lists up to this long are sorted by random numbers: a Feistel network of so few bits favours some of their orders
SHORT = 1024
GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit integers.  uint64 of any
    shape, unchanged -> uint64.
    """
    z = values + np.uint64(GOLDEN)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def permute(indices: np.ndarray | Sequence[int], length: int, key: int) -> np.ndarray:
    """Where a permutation of 0..length-1 sends these indices: int64, same shape.  Memory and time do not depend on
    ``length``.

    Short lists are sorted by random numbers.  Others go through a Feistel network over the smallest even number of bits
    that holds ``length``; what lands outside goes through it again (cycle walking), at most four times on average.

    Args:
        indices: integers in 0..length-1.
        length: below 2**62.
        key: 64 bits; each gives another permutation.

    Raises:
        ValueError: an index outside.
    """
    values = np.array(indices, dtype=np.int64)
    if values.size and not (0 <= values.min() and values.max() < length):
        raise ValueError(f"index {int(values.min())} or {int(values.max())}: must be in 0..{length - 1}")
    secret = splitmix64(np.array([key % 2**64], dtype=np.uint64))
    if length <= SHORT:
        return np.argsort(splitmix64(np.arange(length, dtype=np.uint64) + secret), kind="stable")[values]
    flat = values.reshape(-1)
    outside = np.arange(flat.size)
    half = np.uint64(((length - 1).bit_length() + 1) // 2)
    keys = splitmix64(np.arange(ROUNDS, dtype=np.uint64) + secret)
    while outside.size:
        flat[outside] = _feistel(flat[outside].astype(np.uint64), half, keys).astype(np.int64)
        outside = outside[flat[outside] >= length]
    return values


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (splitmix64(right ^ key) & mask)
    return (left << half) | right


def mixture_pattern(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A repeating pattern of data set numbers with shares ``weights``, evenly spread: after any n positions each set
    has come n * share times, to within one.

    Sample g of the mixture is sample ``(g // L) * counts[d] + before[g % L]`` of data set ``d = pattern[g % L]``, L the
    length of the pattern: the shortest that meets every weight to 1/10000 of itself, else 4096 (where every set comes
    at least once).

    Returns:
        (pattern, counts, before): int64 [L] data set numbers, [D] how often each comes in the pattern, [L] how often
        position's own set came before.

    Raises:
        ValueError: no weights, or one that is not above 0.
    """
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"data.mixture with weights {list(weights)}: each must be a number above 0")
    if len(weights) > LONGEST_PATTERN:
        raise UserError(
            f"data.mixture of {len(weights)} data sets: must be at most {LONGEST_PATTERN}; join some of them"
        )
    counts = _pattern_counts(np.array(weights, dtype=np.float64) / sum(weights))
    length = int(counts.sum())
    pattern, before = np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64)
    given = np.zeros_like(counts)
    for position in range(length):
        # Of the sets whose next turn has come (or the total would run ahead of its share), the one whose turn ends
        # first: exact in integers.
        due = np.flatnonzero(given * length < (position + 1) * counts)
        chosen = due[np.argmin(-(-(given[due] + 1) * length // counts[due]))]
        pattern[position], before[position] = chosen, given[chosen]
        given[chosen] += 1
    return pattern, counts, before


def _pattern_counts(shares: np.ndarray) -> np.ndarray:
    for length in range(len(shares), LONGEST_PATTERN):
        counts = np.rint(shares * length).astype(np.int64)
        if counts.min() >= 1 and counts.sum() == length and np.all(np.abs(counts / length - shares) <= 1e-4 * shares):
            return counts
    counts = np.maximum(1, np.floor(shares * LONGEST_PATTERN).astype(np.int64))
    while counts.sum() != LONGEST_PATTERN:
        short = int(np.sign(LONGEST_PATTERN - counts.sum()))
        behind = short * (shares * LONGEST_PATTERN - counts)
        counts[np.argmax(np.where(counts + short >= 1, behind, -np.inf))] += short
    return counts


def bucketed(costs: np.ndarray, batch: int, key: int) -> np.ndarray:
    """The order of one window of samples with `data.cost_buckets`: sorted by cost, cut into batches of ``batch``, and
    the batches shuffled.

    This changes the distribution of batches: the samples of a batch are no longer independent draws, they cost about
    the same (so they have about the same length), and the noise of the gradient goes with the length.  Each sample
    still comes exactly once, within its window.

    Args:
        costs: int64 [W * batch], of the samples of the window by number.
        batch: samples of a global batch.
        key: of the window.

    Returns:
        int64 [W * batch]: positions in ``costs``, in the order in which they are taken; inside a batch ascending.
    """
    groups = np.argsort(costs, kind="stable").reshape(-1, batch)
    return np.sort(groups[permute(np.arange(len(groups)), len(groups), key)], axis=1).reshape(-1)
