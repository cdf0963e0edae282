"""Which id a token has: one table for conditions, special tokens and codes.  No PyTorch here: `check` asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...codec.geometry import expected_levels
from ...condition.folder import text_width
from ...config.schema import Config

UNCONDITIONAL, HYBRID, GIVEN = "unconditional", "hybrid", "given_first_block"
LAYOUTS = (UNCONDITIONAL, HYBRID, GIVEN)


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a layout (of `LAYOUTS`), with blocks of `block` tokens, `codes` codes, and `conditions` ids of classes or
    words.

    hybrid: begin of video, the middle tokens 1 to block - 1, conditions, codes; given_first_block: conditions, codes,
    and one id that no token ever has; unconditional: codes.
    """

    layout: str
    block: int
    codes: int
    conditions: int = 0

    @property
    def condition_offset(self) -> int:
        """Id of condition 0."""
        return self.block if self.layout == HYBRID else 0

    @property
    def code_offset(self) -> int:
        """Id of code 0."""
        return self.condition_offset + self.conditions

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.code_offset + self.codes + (self.layout == GIVEN)


def vocabulary_of(config: Config) -> Vocabulary:
    """Of a run; UserError, one line, where its codec's folder does not tell the levels of its codes, or nothing
    tells the ids of its texts.
    """
    options, condition, conditions = config.objective, config.condition, 0
    if condition.kind != "none":
        conditions = len(condition.classes) if condition.kind == "class" else text_width(condition)
    return Vocabulary(options.layout, options.block, math.prod(expected_levels(config.codec)), conditions)
