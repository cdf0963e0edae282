"""Masks that the benchmarks measure, all as two key intervals per row.

stage1 ... stage4   one training sample of the stage's configuration (examples/videogpt), its clips drawn as in training
stage4-long         the same with a last clip of one frame: the longest row of stage 4, 38,478 tokens at 320x192
split               a sample of any number of frames and clips
nbp                 block-causal over rows of patches (Next Block Prediction)
frame-causal        block-causal over frames (ViD-GPT)
causal, full        the usual ones
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.plans import split_clips
from megatron_videogpt.errors import UserError
from megatron_videogpt.sequence.intervals import attended_pairs, padding_intervals
from megatron_videogpt.sequence.layout import layout, pack, training_shape

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "videogpt"
STAGES = ("stage1", "stage2", "stage3", "stage4", "stage4-long")
NAMES = (*STAGES, "split", "nbp", "frame-causal", "causal", "full")


@dataclass(frozen=True)
class Mask:
    """intervals: int32 ``[L, 4]``, padding rows included; tokens, pairs: without them; clips: frames of each clip of
    each packed sample.
    """

    name: str
    intervals: Tensor
    tokens: int
    pairs: int
    clips: tuple[tuple[int, ...], ...] = ()

    @property
    def density(self) -> float:
        """Share of all pairs that attend."""
        return self.pairs / self.tokens**2

    def __str__(self) -> str:
        clips = f", clips {'; '.join(' '.join(map(str, sample)) for sample in self.clips)}" if self.clips else ""
        padding = len(self.intervals) - self.tokens
        return (
            f"{self.name}: {self.tokens:,} tokens{f' and {padding} of padding' if padding else ''}, "
            f"{self.pairs:,} pairs, density {self.density:.3f}{clips}"
        )


@dataclass(frozen=True)
class Split:
    """How training samples are cut.  frames: of a sample; clips: fewest and most; last: frames of the last clip, 0 for
    any.
    """

    frames: int
    clips: tuple[int, int]
    last: int = 0

    def draw(self, rng: random.Random, frames: int | None = None) -> tuple[int, ...]:
        """Frames of the clips of one sample (of `frames` frames), drawn as `data.clips` draws them."""
        frames = frames or self.frames
        if not self.last or frames <= self.last:
            return split_clips(rng, frames, self.clips)
        return (*split_clips(rng, frames - self.last, (self.clips[0] - 1, self.clips[1] - 1)), self.last)


def split_of(name: str) -> Split:
    """The split of a stage."""
    data = load_config(EXAMPLES / f"{name.partition('-')[0]}.toml").data
    return Split(data.frames, data.clips, last=1 if name.endswith("-long") else 0)


def sample_tokens(clips: tuple[int, ...], grid: tuple[int, int]) -> int:
    """Tokens of a training sample: every clip noisy, all but the last one also clean."""
    return (2 * sum(clips) - clips[-1]) * (grid[0] * grid[1] + 2)


def draw_samples(
    split: Split, grid: tuple[int, int], rng: random.Random, length: int | None, packed: int = 1
) -> list[tuple[int, ...]]:
    """Clips of the samples of one row: `packed` samples, or with a `length` as many as fit and a shorter one for what
    is left.
    """
    if length is None:
        return [split.draw(rng) for _ in range(packed)]
    samples: list[tuple[int, ...]] = []
    while True:
        clips = split.draw(rng)
        if sample_tokens(clips, grid) > length:
            break
        samples.append(clips)
        length -= sample_tokens(clips, grid)
    # So many frames fit however they are cut: every clip but the last frame's twice.
    frames = min(split.frames - 1, (length // (grid[0] * grid[1] + 2) + 1) // 2)
    if frames >= max(2, split.last + 1):
        samples.append(split.draw(rng, frames))
    return samples


def block_causal(tokens: int, block: int) -> Tensor:
    """int32 ``[tokens, 4]``: every token sees its own block of `block` tokens and all before it."""
    table = torch.zeros(tokens, 4, dtype=torch.int32)
    table[:, 1] = ((torch.arange(tokens) // block + 1) * block).clamp(max=tokens)
    return table


def plain_intervals(name: str, tokens: int, grid: tuple[int, int]) -> Tensor:
    """The masks that no clip split decides, over `tokens` tokens."""
    block = {"nbp": grid[1], "frame-causal": grid[0] * grid[1], "causal": 1, "full": tokens}[name]
    return block_causal(tokens, block)


def build(
    name: str,
    length: int | None,
    grid: tuple[int, int],
    seed: int,
    multiple: int = 1,
    split: Split | None = None,
    packed: int = 1,
) -> Mask:
    """The mask of a row of at most `length` tokens (None: of `packed` samples; plain masks then have 8,192), padded to
    a multiple of `multiple`.

    split: for the mask of this name.  Raises ValueError for an unknown name, or where not even two frames fit.
    """
    if name not in NAMES:
        raise UserError(f"mask {name!r} is not one of {', '.join(NAMES)}")
    clips: tuple[tuple[int, ...], ...] = ()
    if name in STAGES or name == "split":
        chosen = split_of(name) if split is None or name != "split" else split
        clips = tuple(draw_samples(chosen, grid, random.Random(seed), length, packed))
        if not clips:
            raise UserError(
                f"mask {name}: {length} tokens hold no sample of two frames of {grid[0]}x{grid[1]} patches; "
                "allow more tokens"
            )
        intervals = pack([layout(training_shape(sample, grid)) for sample in clips]).intervals
    else:
        intervals = plain_intervals(name, length or 8192, grid)
    tokens, pairs = len(intervals), attended_pairs(intervals)
    padded = torch.cat([intervals, padding_intervals(tokens, -tokens % multiple)])
    return Mask(name, padded, tokens, pairs, clips)
