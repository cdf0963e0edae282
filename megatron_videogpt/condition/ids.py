"""The text encoder `ids`: a tokenizer alone, for objectives whose vocabulary has the ids of texts.

Ids travel as features do, which may be stored with 16 bits: each as its bytes, numbers that float16 and bfloat16
have exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..hub.common.text_ids import PADDING, START, framed
from .folder import fingerprint_of, text_width
from .options import ConditionConfig
from .tokenizer_file import FAST, ID_BYTES, open_tokenizer


class Ids:
    """Every text is `condition.tokens` ids: the start, those of the tokenizer without marks of its own, cut or padded
    on the right.  Padding is told as any other.  See `TextEncoder`; `ids_of` gives the ids of features.
    """

    name = "ids"
    width = ID_BYTES

    def __init__(self, options: ConditionConfig) -> None:
        self._options, self.max_tokens = options, options.tokens
        self.words, self.fingerprint = text_width(options), fingerprint_of(options)
        self.device = torch.device("cpu")
        self.marks = self._mark(START), self._mark(PADDING)

    def count(self, texts: Sequence[str]) -> list[int]:
        """See `TextEncoder.count`."""
        if not all(text.strip() for text in texts):
            raise UserError("an empty caption")
        return [self.max_tokens for _ in texts]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """See `TextEncoder.encode`; UserError, one line, also for an id outside of the vocabulary."""
        self.count(texts)
        return [features_of(self.ids(text)).to(self.device) for text in texts]

    def ids(self, text: str) -> list[int]:
        """The ids of a text."""
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return checked(framed(found, *self.marks, self.max_tokens), self.words, f"the text {text!r:.60}")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Ids:
        """See `TextEncoder.to`; there is nothing that a dtype would change."""
        self.device = torch.device(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}

    @cached_property
    def _tokenizer(self) -> Any:
        return open_tokenizer(self._options)

    def _mark(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise UserError(
                f"condition.encoder_path={self._options.encoder_path}: {FAST} has no token {name}; the encoder "
                f"{self.name} needs {START} and {PADDING}, as Llama's tokenizers have them"
            )
        return checked([found], self.words, name)[0]


def features_of(ids: Sequence[int]) -> Tensor:
    """float32 ``[m, ID_BYTES]``: the bytes of ids, the lowest first."""
    return torch.tensor(
        [[number >> 8 * place & 255 for place in range(ID_BYTES)] for number in ids], dtype=torch.float32
    )


def ids_of(features: np.ndarray) -> np.ndarray:
    """Ids int64 ``[m]`` of features ``[m, ID_BYTES]``."""
    return np.asarray(features).astype(np.int64) @ (1 << 8 * np.arange(ID_BYTES, dtype=np.int64))


def checked(ids: Sequence[int], words: int, whose: str) -> list[int]:
    """The ids; UserError, one line, where one is outside of the vocabulary."""
    if max(ids) >= words:
        raise UserError(
            f"{whose} has the id {max(ids)}, outside of the {words} ids of condition.width; use the tokenizer that the "
            "model is for, or condition.width=0 for as many ids as it has"
        )
    return list(ids)
