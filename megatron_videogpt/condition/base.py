"""Text encoders: what turns a caption into features, one for each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TextEncoder(Protocol):
    """A frozen encoder with its tokenizer.  It can be pickled, for reader processes.

    name: of `options.ENCODERS`; width: of a feature.
    """

    name: str
    width: int
    max_tokens: int

    @property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of weights, tokenizer and settings: of all that features follow from, `max_tokens`
        and which texts included.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens that `encode` gives for each text, from the tokenizer alone: at least 1, at most `max_tokens`.

        Raises UserError, one line, for a text without any.
        """
        ...

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Features of the real tokens of each text (no padding), float32 ``[T, width]`` on the encoder's device; the
        same for a text whatever else is in the list.

        Raises UserError as `count` does.
        """
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextEncoder:
        """Move in place; returns itself."""
        ...
