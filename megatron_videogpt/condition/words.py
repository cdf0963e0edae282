"""The text encoder `words`: a fixed vector for every word, without weights; for tests and small runs."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .folder import WORDS_WIDTH, fingerprint_of
from .options import ConditionConfig

WORD = re.compile(r"[^\W_]+")
"""Letters and digits of any script."""


class Words:
    """Each word, in lower case and normal form (NFC), is a vector of standard normal numbers that follow from the word
    alone: the same on every machine and with every release.  See `TextEncoder`.
    """

    name = "words"
    width = WORDS_WIDTH

    def __init__(self, options: ConditionConfig) -> None:
        self.max_tokens, self.fingerprint = options.max_tokens, fingerprint_of(options)
        self.device = torch.device("cpu")

    def count(self, texts: Sequence[str]) -> list[int]:
        """See `TextEncoder.count`."""
        return [len(self._words(text)) for text in texts]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """See `TextEncoder.encode`."""
        return [torch.from_numpy(np.stack([*map(_vector, self._words(text))])).to(self.device) for text in texts]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Words:
        """See `TextEncoder.to`; there is nothing that a dtype would change."""
        self.device = torch.device(device)
        return self

    def _words(self, text: str) -> list[str]:
        found = WORD.findall(unicodedata.normalize("NFC", text.lower()))[: self.max_tokens]
        if not found:
            raise UserError(f"a caption without a word: {text!r:.60}")
        return found


@lru_cache(maxsize=1 << 16)
def _vector(word: str) -> np.ndarray:
    """float32 [WORDS_WIDTH]: pairs of 53-bit numbers from blake2b of word and counter, by Box and Muller."""
    numbers: list[float] = []
    for counter in range(WORDS_WIDTH // 2):
        bits = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=16, salt=counter.to_bytes(4, "little"))
        first, second = (((int.from_bytes(bits.digest()[i : i + 8], "little") >> 11) + 0.5) / 2**53 for i in (0, 8))
        radius, angle = math.sqrt(-2 * math.log(first)), 2 * math.pi * second
        numbers += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(numbers, np.float32)
