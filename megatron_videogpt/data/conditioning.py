"""What samples are given beside their frames: from labels and captions, as the data has them, to what a model takes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..condition.base import TextEncoder
from ..condition.captions import text_of
from ..condition.folder import text_width
from ..condition.ids import checked, ids_of
from ..condition.options import IDS, NONE, ConditionConfig
from ..errors import UserError
from .bad import BadVideo
from .plans import Sample


@dataclass(frozen=True)
class Conditioning:
    """How the condition of a run's samples is made.

    options: of the run; encoder: of captions; None where there are none, or where features were computed in advance;
    features: fingerprint of the encoder that made those.  It can be pickled, for reader processes.
    """

    options: ConditionConfig = NONE
    encoder: TextEncoder | None = None
    features: str = ""

    @property
    def identity(self) -> str:
        """Fingerprint of the text encoder that features are of; "" without texts."""
        return self.features if self.encoder is None else self.encoder.fingerprint

    @property
    def wanted(self) -> bool:
        """Whether readers are to bring labels and captions along."""
        return self.options.kind != "none"

    @property
    def description(self) -> dict[str, Any]:
        """What decides which samples are given what, for fingerprints; nothing where none is given anything."""
        options = self.options
        frames = {"given": options.frames, "dropout": options.dropout} if any(options.frames) else {}
        if options.kind == "class":
            return {**frames, "classes": options.classes, "dropout": options.dropout}
        if options.kind == "text":
            return {**frames, "text": [self.identity, options.text_tokens], "dropout": options.dropout}
        return frames

    def number(self, label: str) -> int:
        """Number of the class that a label belongs to: of its name, or of its longest leading parts that are a class.

        Raises UserError, one line with the nearest names.
        """
        name = label
        while name not in self._numbers and "/" in name:
            name = name.rpartition("/")[0]
        if name in self._numbers:
            return self._numbers[name]
        near = difflib.get_close_matches(label, self.options.classes, 3, 0.4) or list(self.options.classes[:3])
        raise UserError(
            f"class {label!r} is not one of the {len(self.options.classes)} of condition.classes; the nearest: "
            f"{', '.join(near)}"
        )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.options.classes)}

    def values(self, label: str, caption: str) -> np.ndarray | None:
        """A condition as `Sample.condition`, of whichever of the two the kind asks for; UserError, one line, where it
        cannot be made.
        """
        if self.options.kind == "class":
            if not label:
                raise UserError("has no label, and condition.kind is class")
            return np.array([self.number(label)], np.int64)
        if self.options.kind == "text":
            text = text_of(self.options, label, caption)
            if not text.strip():
                raise UserError("has no caption, and condition.kind is text")
            if self.encoder is None:
                raise UserError(
                    "has no text features; make them with megatron-videogpt data encode-text, or give "
                    "condition.encoder_path"
                )
            return self._ready(self.encoder.encode([text])[0].cpu().numpy())
        return None

    def _ready(self, features: np.ndarray) -> np.ndarray:
        """Features of a text as a model takes them: of the encoder `ids` int64 ``[m]``, the ids."""
        if self.options.encoder != IDS:
            return features
        return np.array(checked(ids_of(features).tolist(), text_width(self.options), "a text"), np.int64)

    def applied(self, sample: Sample) -> Sample:
        """A sample as read, with its condition as an array; BadVideo where it cannot be made."""
        if not self.wanted:
            return sample
        try:
            # What was computed in advance comes with the sample.
            read: Any = sample.condition
            values: Any = self.values(sample.label, sample.caption) if read is None else self._ready(read)
        except UserError as error:
            raise BadVideo(sample.name, str(error), "condition") from error
        return replace(sample, condition=values)


UNCONDITIONAL = Conditioning()
"""Of runs whose samples have no condition."""
