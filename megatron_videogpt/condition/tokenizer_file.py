"""tokenizer.json, a whole tokenizer in one file, for texts that are ids: read without running code of its folder.

No PyTorch here: rules ask for the number of ids.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError, shortened
from .options import ConditionConfig

FAST = "tokenizer.json"
ID_BYTES = 3
"""Bytes in which an id travels (`ids.py`)."""
MOST = 1 << 8 * ID_BYTES
"""Ids that they tell apart."""


def tokenizer_path(options: ConditionConfig) -> Path:
    """The file; UserError, one line, where there is none."""
    if not options.encoder_path:
        raise UserError(
            f"condition.encoder_path is empty: condition.encoder={options.encoder} needs a local folder with {FAST}, "
            "or ids computed in advance (megatron-videogpt data encode-text) and their number as condition.width"
        )
    path = Path(options.encoder_path) / FAST
    if not path.is_file():
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: no {FAST} in it; give the folder of a Hugging Face "
            "tokenizer that has one (nothing is downloaded)"
        )
    return path


def open_tokenizer(options: ConditionConfig) -> Any:
    """A tokenizers.Tokenizer that neither cuts nor pads; UserError, one line, for a file that is none."""
    path = tokenizer_path(options)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"condition.encoder={options.encoder} needs the tokenizers package: pip install tokenizers"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  (tokenizers raises bare Exceptions)
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: {FAST} is no tokenizer ({shortened(error)}); copy it again"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def ids_in(options: ConditionConfig) -> int:
    """One more than the highest id of the file; UserError, one line, as `open_tokenizer`, and for more than `MOST`."""
    path = tokenizer_path(options)
    status = path.stat()
    return _ids_in(options, os.path.realpath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _ids_in(options: ConditionConfig, path: str, size: int, changed: int) -> int:
    highest = max(open_tokenizer(options).get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= MOST:
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: {FAST} has the id {highest}; at most {MOST - 1} are taken"
        )
    return int(highest) + 1
