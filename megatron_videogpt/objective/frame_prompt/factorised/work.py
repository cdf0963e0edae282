"""What a video asks of the factorised network: attended pairs of all masks in closed form, for numbers and for arrays
of videos alike.
"""

from __future__ import annotations

from ...work import Number
from .variant import FULL, PARTIAL, Variant


def pairs_of(variant: Variant, frames: Number, prompt: Number, patches: Number, words: Number = 0) -> Number:
    """(query, key) pairs that attend in one layer: in space, in time, to the prompt and to `words` tokens of a text.

    With 1 < prompt < `enhance_frames` a frame counts as often as it is listed.
    """
    total = frames * patches * patches + patches * _in_time(variant, frames, prompt)
    if variant.text_width:
        total = total + frames * patches * words
    if variant.enhance == "none":
        return total
    return total + patches * patches * _to_prompt(variant, frames, prompt)


def _in_time(variant: Variant, frames: Number, prompt: Number) -> Number:
    """Pairs of frames."""
    if variant.time == FULL:
        return frames * frames
    if variant.time == PARTIAL:
        return prompt * (prompt + 1) // 2 + (frames - prompt) * frames
    return frames * (frames + 1) // 2


def _to_prompt(variant: Variant, frames: Number, prompt: Number) -> Number:
    """Pairs of frames: given ones attend one, others `enhance_frames`, or the only one that there is."""
    if variant.enhance == "first_frame":
        return frames
    more = variant.enhance_frames - 1
    return frames + (frames - prompt) * more * (prompt > 1)
