"""The condition that the model of a Hugging Face folder was trained with, as its `config.json` has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..condition.folder import text_width
from ..condition.options import NONE, ConditionConfig
from ..errors import UserError
from .untrusted import show

MOST_CLASSES, WIDEST = 10**6, 2**17
"""Largest plausible values; what lies beyond is damage."""


def condition_fields(condition: ConditionConfig) -> dict[str, Any]:
    """Fields of `config.json`; none of a model without a condition."""
    if condition.kind == "class":
        return {"class_names": list(condition.classes)}
    return {"text_feature_size": text_width(condition)} if condition.kind == "text" else {}


def condition_of(config: dict[str, Any], where: str, trained: ConditionConfig = NONE) -> ConditionConfig:
    """The condition of a folder's `config.json`, everything else as it was trained; ValueError, one line, for fields
    that no model has.
    """
    names, width = config.get("class_names"), config.get("text_feature_size")
    if names is not None and width is not None:
        raise UserError(f"{where}: class_names and text_feature_size are both there; a model takes one of the two")
    if names is not None:
        sound = (
            isinstance(names, list) and 0 < len(names) <= MOST_CLASSES and all(isinstance(n, str) and n for n in names)
        )
        if not sound or len(set(names)) < len(names):
            raise UserError(f"{where}: class_names is {show(names)}; expected a list of different names")
        return replace(trained, kind="class", classes=tuple(names))
    if width is not None:
        if type(width) is not int or not 0 < width <= WIDEST:
            raise UserError(f"{where}: text_feature_size is {show(width)}; expected a whole number from 1 to {WIDEST}")
        return replace(trained, kind="text", width=width)
    return replace(trained, kind="none")
