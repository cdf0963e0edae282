"""Ids of texts that stand before a video: those of a tokenizer.json, framed as models are trained with them.  Reading
one needs tokenizers, which transformers brings along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER, FILE = "text_tokenizer", "tokenizer.json"
"""Where an exported folder has it."""
START, PADDING = "<s>", "</s>"
"""What stands before a text, and behind one that is short; Llama-2's have the ids 1 and 2."""


def framed(ids: Sequence[int], start: int, padding: int, tokens: int) -> list[int]:
    """`tokens` ids: the start, then these, cut or padded on the right."""
    return ([start, *ids] + [padding] * tokens)[:tokens]


def reader(folder: str | Path, tokens: int) -> Callable[[str], list[int]]:
    """What makes `tokens` ids of a text, by the file in this folder.  ValueError, one line, for a file that is none, or
    has no marks.
    """
    from tokenizers import Tokenizer

    path = Path(folder) / FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  (tokenizers raises bare Exceptions)
        raise ValueError(f"{path}: no tokenizer that can be read ({' '.join(str(error).split())[:200]})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    start, padding = (tokenizer.token_to_id(mark) for mark in (START, PADDING))
    if start is None or padding is None:
        raise ValueError(f"{path}: has no tokens {START} and {PADDING}, which stand before and behind a text")
    return lambda text: framed(tokenizer.encode(text, add_special_tokens=False).ids, start, padding, tokens)
