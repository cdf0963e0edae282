"""What the factorised networks of Ca2-VDM differ in, beside their sizes.  No PyTorch here."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import UserError
from ....model.factorised import Pieces

ENHANCEMENTS = ("none", "prev_frames", "first_frame")
CAUSAL, FULL, PARTIAL = "causal", "full", "partial"
CYCLIC, FIXED = "cyclic", "fixed"


@dataclass(frozen=True)
class Variant:
    """A network.

    enhance: which prompt frames each frame attends by a layer of its own: none, the last `enhance_frames` ones
    (prev_frames), or the first (first_frame).  mask_channel: whether the first layer is told which frames are given.
    time: which frames a frame sees at its own places: causal (those up to it), full (all), or partial (all, but given
    frames those up to them).  positions: entry of the temporal table, cyclic (a frame's number in the video, modulo
    `places`) or fixed (its number in the pass).  space_scale, time_scale: divide positions.  text_width, text_tokens:
    of the text encoder's output, 0 for networks without text.
    """

    enhance: str = "prev_frames"
    enhance_frames: int = 3
    mask_channel: bool = True
    time: str = CAUSAL
    positions: str = CYCLIC
    places: int = 33
    space_scale: float = 1.0
    time_scale: float = 1.0
    text_width: int = 0
    text_tokens: int = 0

    def pieces(self, first: bool) -> Pieces:
        """Of a layer; first: whether it is the network's first one, which alone knows time."""
        prompt, text = self.enhance != "none", self.text_width > 0
        if not first:
            return Pieces(prompt, text)
        return Pieces(prompt, text, self.places, self.time_scale, self.mask_channel)


def prompt_lengths(frames: int, chunk: int, given: int) -> list[int]:
    """Prompt lengths that training draws from, for clips of so many frames: what is given at inference and whole chunks
    more (reference README section 4).
    """
    return list(range(given, frames, chunk))


def temporal_places(variant: Variant, frames: int, start: int = 0, cached: bool = False) -> list[int]:
    """Entries of the temporal table of a pass over so many frames (reference README section 3).

    start: number of the pass's first frame in the whole video; in training, the drawn offset, which is 0 but for clips
    of `places` frames.  cached: whether the pass goes on from a cache.
    """
    if variant.positions == CYCLIC:
        return [(start + frame) % variant.places for frame in range(frames)]
    first = start if cached else 0
    if first + frames > variant.places:
        last = first + frames - 1
        raise UserError(f"frames {first} to {last}: the model has {variant.places} fixed positions; use fewer frames")
    return list(range(first, first + frames))


def seen_in_time(variant: Variant, frames: int, prompt: int) -> list[int]:
    """How many frames each frame sees at its own places, from the first on (reference README section 5)."""
    if variant.time == FULL:
        return [frames] * frames
    return [frames if variant.time == PARTIAL and frame >= prompt else frame + 1 for frame in range(frames)]


def seen_from_cache(variant: Variant, frames: int, held: int, writing: bool) -> list[int]:
    """The same in a pass behind `held` frames of a cache, these included; writing: whether its frames are clean."""
    if variant.time == FULL:
        raise UserError("a model whose frames see all frames has no cache; sample without one")
    whole = variant.time == PARTIAL and not writing
    return [held + (frames if whole else frame + 1) for frame in range(frames)]


def key_frames(variant: Variant, frame: int, prompt: int) -> list[int]:
    """Frames that a frame attends in the prefix enhancement, as often as they count; of a frame of the prompt its own
    once, which is the same as several times (reference README section 6).
    """
    if variant.enhance == "first_frame":
        return [0]
    if frame < prompt:
        return [frame]
    return [max(prompt - 1 - number, 0) for number in reversed(range(variant.enhance_frames))]


def written_frames(variant: Variant, frames: int) -> list[int]:
    """Frames of a write of so many whose keys and values the enhancement's cache holds afterwards."""
    if variant.enhance == "first_frame":
        return [0]
    count = variant.enhance_frames
    repeated = [frame for frame in range(frames) for _ in range(count // frames + 1)] if frames < count else None
    return list(range(frames - count, frames)) if repeated is None else repeated[:count]


def repeats_frames(variant: Variant, prompt: int) -> bool:
    """Whether the first frame counts several times beside others: with 1 < prompt < `enhance_frames`."""
    return variant.enhance == "prev_frames" and 1 < prompt < variant.enhance_frames
