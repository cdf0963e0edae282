"""Where the three hint tokens `<|diffusion|>`, `<img>` and `</img>` are named: config.json, tokenizer.json,
added_tokens.json, tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .untrusted import show

TOKENS = ("<|diffusion|>", "<img>", "</img>")
FIELDS = ("diffusion_token_id", "img_start_token_id", "img_end_token_id")
TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")


def find_hint_ids(
    config: dict[str, Any], files: Iterable[tuple[str, dict[str, Any]]], vocabulary: int | None, folder: Path
) -> tuple[int, int, int] | None:
    """Ids of the three tokens, or None where nothing names any of them.

    ``files``: the tokenizer's JSON files, by their names in the folder.  ValueError, one line, where they contradict
    each other, name only some of the three, or give an id outside ``vocabulary``.
    """
    named: dict[str, tuple[int, str]] = {}
    for name, pairs in [
        ("config.json", _of_config(config)),
        *((name, _of_tokenizer(name, content)) for name, content in files),
    ]:
        for token, number in pairs:
            if type(number) is not int or not 0 <= number < (vocabulary or 2**31):
                limit = (
                    f"expected a row of the text table, 0 to {vocabulary - 1}" if vocabulary else "expected a token id"
                )
                raise UserError(f"{folder}/{name}: {token} has id {show(number)}; {limit}")
            before = named.setdefault(token, (number, name))
            if before[0] != number:
                raise UserError(
                    f"{folder}: {token} has id {number} in {name} and {before[0]} in {before[1]}; correct a "
                    "file, or give the ids yourself"
                )
    missing = [token for token in TOKENS if token not in named]
    if len(missing) == len(TOKENS):
        return None
    if missing:
        found = ", ".join(f"{token} = {number}" for token, (number, _) in named.items())
        raise UserError(
            f"{folder}: its config.json and tokenizer name {found} but not {', '.join(missing)}; add what is "
            "missing, or give the ids yourself"
        )
    first, second, third = (named[token][0] for token in TOKENS)
    if len({first, second, third}) < len(TOKENS):
        raise UserError(
            f"{folder}: {', '.join(TOKENS)} have ids {first}, {second}, {third}; expected three different ones"
        )
    return first, second, third


def _of_config(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for token, key in zip(TOKENS, FIELDS):
        if config.get(key) is not None:
            yield token, config[key]


def _of_tokenizer(name: str, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(token, id) of the three tokens in one tokenizer file; in added_tokens_decoder ids are keys, hence text."""
    if name.endswith("added_tokens.json"):
        pairs: list[tuple[Any, Any]] = list(content.items())
    elif name.endswith("tokenizer.json"):
        entries = content.get("added_tokens")
        pairs = (
            [(entry.get("content"), entry.get("id")) for entry in entries if isinstance(entry, dict)]
            if isinstance(entries, list)
            else []
        )
    else:
        decoder = content.get("added_tokens_decoder")
        pairs = (
            [(entry.get("content"), _number(key)) for key, entry in decoder.items() if isinstance(entry, dict)]
            if isinstance(decoder, dict)
            else []
        )
    return ((token, number) for token, number in pairs if isinstance(token, str) and token in TOKENS)


def _number(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key
