"""What a factorised layer is made of: attention in space, over the prompt, over time, and to a text, each with a mask
of its own.  No PyTorch here: rows are made without the layers.
"""

from __future__ import annotations

from typing import NamedTuple

SPATIAL, TEMPORAL, PROMPT = range(3)
"""Numbers of the row's masks: patches of a frame; frames at a patch's place; prompt frames, if these are attended."""

FRAME, PLACE, IS_PROMPT, SEEN = "frame", "place", "is_prompt", "seen"
"""Side inputs of the row.  Per token: the number of its frame in the row int64 ``[L]``, and which text tokens it sees,
as intervals int32 ``[L, 4]``.  Of each of the row's F frames, whole: the entry of the temporal table int64 ``[F]``, and
whether it is given float32 ``[F]``.
"""
MODULATION, TEXT, MERGE_WEIGHT, MERGE_BIAS = "modulation", "text", "merge_weight", "merge_bias"
"""Trained side inputs: ``[F, 6D]`` (shift, scale and gate of attention, then of the feed-forward), text ``[n, D]``, and
of networks with a mask channel the map before the first layer's attention in time, ``[D, D + 1]`` and ``[D]``: layers
of a checkpoint all have the same parameters.
"""

NORM_EPSILON = 1e-6
"""Of the published network's norms, which have no weights."""


class Pieces(NamedTuple):
    """Of one layer, beside attention in space and in time and the feed-forward.

    prompt: attention to prompt frames; text: attention to a text; places: entries of the temporal table, which is added
    to what enters attention in time, 0 where nothing is; time_scale: places are divided by it; mask_channel: whether a
    linear map of that and of one channel more, 1 in frames that are given, stands before attention in time.
    """

    prompt: bool = False
    text: bool = False
    places: int = 0
    time_scale: float = 1.0
    mask_channel: bool = False


PLAIN = Pieces()
"""Attention in space and in time alone."""
