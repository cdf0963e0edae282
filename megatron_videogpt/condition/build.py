"""The text encoder that a configuration names."""

from __future__ import annotations

from .base import TextEncoder
from .ids import Ids
from .options import IDS, ConditionConfig
from .transformers_text import TransformersText
from .words import Words


def build_encoder(options: ConditionConfig) -> TextEncoder:
    """The encoder of `condition.encoder`, on the CPU; UserError, one line, when its folder is not usable.

    The tokenizer is there, and weights were looked at; they are loaded by `to` and at the first use, so that whoever
    only counts tokens needs no memory for them.
    """
    if options.encoder == IDS:
        return Ids(options)
    return Words(options) if options.encoder == "words" else TransformersText(options)
