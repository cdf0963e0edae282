"""Which channels dropout keeps, in Python's own integers, from the texts of `sequence/identity.py` and
`model/dropout.py`; shares no code with them.
"""

from __future__ import annotations

from functools import lru_cache

BITS64, BITS32 = 2**64 - 1, 2**32 - 1


def splitmix(state: int) -> int:
    """The published generator's next output: state and result are unsigned 64-bit integers."""
    z = (state + 0x9E3779B97F4A7C15) & BITS64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS64
    return z ^ (z >> 31)


@lru_cache(maxsize=1 << 16)
def kept(key: int, token: int, site: int, width: int, rate: float) -> list[bool]:
    """Of each channel of the token with this number in the sample's sequence."""
    state = (splitmix(key) + token) & BITS64
    seed = splitmix((state + site * 0x9E3779B97F4A7C15) & BITS64)
    low, high = seed & BITS32, seed >> 32
    found = []
    for channel in range(width):
        x = (low + channel * 0x9E3779B9) & BITS32
        x ^= x >> 16
        x = (x * 0x85EBCA6B) & BITS32
        x ^= high
        x ^= x >> 13
        x = (x * 0xC2B2AE35) & BITS32
        x ^= x >> 16
        # As a signed number.
        signed = x - 2**32 if x >= 2**31 else x
        found.append(signed >= int(rate * 2**32) - 2**31)
    return found
