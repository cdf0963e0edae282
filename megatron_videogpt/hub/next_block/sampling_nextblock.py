"""The sampler of next block prediction: ids block by block, and how one is drawn from its logits.

It knows the model only as a `Model`, which may remember keys and values of what it has been given: a token never sees
an unfinished block, so that those never change.  Pure torch: this file is also part of every exported Hugging Face
folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

UNKNOWN = -1
"""Where an id is still to be drawn."""


@dataclass(frozen=True)
class Drawing:
    """How an id is drawn.

    temperature: 0 takes the likeliest id; top_k: ids that are left, 0 for all and for no `top_p` either; top_p: share
    of the probability that the ids left must reach; guidance: t in ``(1 + t) * conditional - t * unconditional``, 0 for
    none; growing: t is `guidance` times the number of the step, from 0 on.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0
    growing: bool = False

    def draw(self, logits: Tensor, without: Tensor | None, step: int, noise: Tensor | None) -> Tensor:
        """int64 ``[n]`` ids of logits ``[n, V]``.

        without: logits of the same tokens without the condition, for guidance; noise: ``[n, V]``, drawn from Exp(1);
        None where temperature is 0.
        """
        logits = logits.float()
        if without is not None:
            scale = self.guidance * step if self.growing else self.guidance
            logits = (1 + scale) * logits - scale * without.float()
        if not self.temperature or noise is None:
            return logits.argmax(-1)
        likely = filtered(logits / self.temperature, self.top_k, self.top_p).softmax(-1)
        # One of them with its probability: the smallest of exponential variates with these rates.
        return (likely / noise).argmax(-1)


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits ``[n, V]``, -inf where they are below the `top_k`-th largest (equal ones stay), and, with `top_p` below 1,
    where likelier ones already add up to more than it: the one that reaches it stays.  As they are where top_k is 0.
    """
    if not top_k:
        return logits
    ranked, order = _largest(logits, min(top_k, logits.shape[1]))
    if top_p < 1:
        before = ranked.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0.0
        ranked = ranked.masked_fill(before > top_p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter_(-1, order, ranked)


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row, falling, and their places; more than `count` of them, -inf in rows that have not so
    many, where others equal the last.
    """
    ranked, order = logits.topk(count)
    least = ranked[:, -1:]
    if int((logits >= least).sum()) > ranked.numel():
        # Three times as long for 16,000 of 64,000.
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked < least, -torch.inf)
    return ranked, order


class Video:
    """What is known of one video: its condition, int64 ids ``[m]``, and its tokens, int64 ids ``[N]`` in the order of
    blocks, `UNKNOWN` where they are to be drawn.  count: tokens before the first one to draw, whole blocks but at a
    hybrid's beginning; after a known block that is not whole, its known tokens stay what they are.
    """

    def __init__(self, condition: Tensor, tokens: Tensor, block: int, hybrid: bool) -> None:
        self.condition, self.tokens, self.block, self.hybrid = condition, tokens, block, hybrid
        unknown = (tokens == UNKNOWN).nonzero()
        known = int(unknown[0]) if len(unknown) else len(tokens)
        self.count = known if hybrid and known < block else known // block * block

    @property
    def next(self) -> int:
        """How many tokens the next step draws."""
        if self.count == len(self.tokens):
            return 0
        return 1 if self.hybrid and self.count < self.block else self.block

    def input(self) -> Tensor:
        """int64 ``[l]``: the condition and the tokens before the next ones, whose logits are those of the last rows.

        hybrid: behind a begin token, and with middle tokens behind the first block.  What is given once is the
        beginning of every later input.
        """
        known = self.tokens[: self.count]
        if not self.hybrid:
            return torch.cat([self.condition, known])
        middle = torch.arange(1, self.block) if self.count >= self.block else known[:0]
        return torch.cat([self.condition, torch.zeros(1).long(), known[: self.block], middle, known[self.block :]])


class Model(Protocol):
    """What predicts ids."""

    def logits(self, inputs: dict[int, Tensor], rows: dict[int, int], guided: bool) -> dict[int, list[Tensor]]:
        """By the numbers of videos: logits ``[rows, V]`` of the last rows of inputs ``[l]``, and, where `guided`, those
        without the conditions.
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """What an observer is shown after a step of each video that it drew tokens of: its number, the place of the first
    of them, their ids, their logits ``[n, V]``, and those without the condition.
    """

    video: int
    place: int
    ids: Tensor
    logits: Tensor
    without: Tensor | None


Noise = Callable[[int, int, int], Tensor]
"""`noise(video, place, count)` -> Exp(1) float32 ``[count, V]``, of tokens from this place on in their order."""


def draw_tokens(
    model: Model,
    videos: list[Video],
    how: Drawing,
    noise: Noise | None = None,
    observer: Callable[[list[Drawn]], None] | None = None,
) -> None:
    """Draws all unknown tokens, a block a step (a hybrid's first block a token a step), of all videos together.

    noise: None where `Drawing.temperature` is 0.
    """
    step = 0
    while waiting := [number for number, video in enumerate(videos) if video.next]:
        inputs = {number: videos[number].input() for number in waiting}
        rows = {number: videos[number].next for number in waiting}
        found, drawn = model.logits(inputs, rows, how.guidance != 0), []
        for number in waiting:
            video, count, (logits, *without) = videos[number], rows[number], found[number]
            first, other = video.count, without[0] if without else None
            random: Tensor | None = None
            if noise is not None and how.temperature:
                random = noise(number, first, count).to(logits.device)
            ids = how.draw(logits, other, step, random).cpu()
            there = video.tokens[first : first + count]
            video.tokens[first : first + count] = torch.where(there == UNKNOWN, ids, there)
            video.count += count
            drawn.append(Drawn(number, first, ids, logits, other))
        if observer is not None:
            observer(drawn)
        step += 1
