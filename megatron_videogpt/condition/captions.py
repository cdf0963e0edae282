"""Which text tells what a video shows: its caption, or the name of its class as words."""

from __future__ import annotations

import re

from .options import LABEL, ConditionConfig

INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Where a small letter meets a capital one."""


def words_of(label: str) -> str:
    """The words of a class folder's name: "ApplyEyeMakeup" -> "apply eye makeup"; folders in folders are words too."""
    return INSIDE.sub(" ", label).replace("/", " ").lower()


def text_of(options: ConditionConfig, label: str, caption: str) -> str:
    """The text of a sample with this label and caption; "" where it has none."""
    return words_of(label) if options.text_from == LABEL and label.strip() else caption
