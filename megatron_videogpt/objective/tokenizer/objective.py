"""Training a tokenizer: an FSQ tokenizer makes videos of their codes, discriminators tell what it makes from videos.

The published paper names the parts, and leaves how they fit together open; docs/tokenizer.md says what is a choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...codec.likeness import ssim
from ...config.schema import Config
from ...data.plans import Sample
from ...sequence.intervals import padding_intervals
from ...sequence.row import Context, Mask, Row, Stream
from ..base import Balanced, Metric, Score, Turn
from .clips import FAKE, LEARNS, REAL, corner, grouped
from .losses import decibels, distinct, fooling, hinge, level_use, per_video, pyramid
from .networks import Adversary, Rebuilt, Tokenizer, Told
from .options import LPIPS, PYRAMID, TokenizerOptions
from .parts import DISCRIMINATOR, FEATURES, TOKENIZER
from .work import TokenizerWork

RECONSTRUCTION = (
    Metric("l1", "pixels", "mean absolute error"),
    Metric("l2", "pixels", "mean squared error"),
    Metric("feature", "feature", "feature loss"),
    Metric("psnr", "psnr", "PSNR in dB"),
    Metric("ssim", "ssim", "SSIM"),
    Metric("codes_of_a_clip", "codes", "different codes of a clip"),
    Metric("level_use", "level_use", "evenness of a clip's levels"),
    Metric("fooling", "adversary", "loss of who fools the discriminators"),
)
TOLD = (
    Metric("logits_real", "adversary", "logits of real videos", part=DISCRIMINATOR),
    Metric("logits_fake", "adversary", "logits of made ones", part=DISCRIMINATOR),
    Metric("right_on_real", "adversary", "real taken for real", part=DISCRIMINATOR),
    Metric("right_on_fake", "adversary", "made taken for made", part=DISCRIMINATOR),
)


@dataclass(frozen=True)
class Tokenizing:
    """The objective.  first: number of the first sample with which the discriminators learn."""

    unit: ClassVar[str] = "video"
    loss_label: ClassVar[str] = "reconstruction loss"

    options: TokenizerOptions
    frames: int
    first: int

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See `Objective`."""
        absent = {"" if self.options.adversarial else "fooling", "" if self._features else "feature"}
        kept = tuple(metric for metric in RECONSTRUCTION if metric.name not in absent)
        return kept + (TOLD if self.options.adversarial else ())

    @property
    def _features(self) -> bool:
        return self.options.feature in (LPIPS, PYRAMID) and self.options.feature_weight > 0

    def length(self, sample: Sample) -> int:
        """See `Objective`."""
        frames, _, height, width = sample.mean.shape
        return max(1, int(TokenizerWork(self.frames, self.options.crop).codes(frames, height, width)))

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective`."""
        videos = [(sample.mean.transpose(0, 1).float() + 1) / 2 for sample in samples]
        side, moving = self.options.crop, self.options.moving
        corners = [corner(video, side, moving, sample.key) for video, sample in zip(videos, samples)]
        contexts = grouped(videos, corners)
        if self.options.adversarial and samples[0].number >= self.first:
            contexts[LEARNS] = Context(torch.ones(1))
        counts = torch.tensor([self.length(sample) for sample in samples])
        count, padding = int(counts.sum()), int(-counts.sum() % multiple)
        own = torch.arange(count, dtype=torch.int32)
        mask = torch.stack([own, own + 1, torch.zeros_like(own), torch.zeros_like(own)], dim=1)
        counted = torch.tensor([float(sample.scored) for sample in samples])
        return Row(
            masks=(Mask(torch.cat([mask, padding_intervals(count, padding)])),),
            positions=torch.arange(count + padding),
            streams={"code": Stream(torch.arange(count))},
            scored="code",
            target=torch.empty(0),
            weight=(counted / counts).repeat_interleave(counts),
            counted=counted,
            count=int(counted.sum()),
            context=contexts,
        )

    def given(self, row: Row, turn: Turn) -> Row:
        """The discriminators get what the tokenizer makes of the row by now, once they learn."""
        if turn.first or LEARNS not in row.context:
            return row
        with torch.no_grad():
            rebuilt: list[Rebuilt] = turn.networks[TOKENIZER](row)
        found = dict(row.context)
        for place, part in enumerate(rebuilt):
            found[f"{REAL} {place}"], found[f"{FAKE} {place}"] = Context(part.real), Context(part.made)
        return replace(row, context=found)

    def score(self, output: Any, row: Row, turn: Turn) -> Score:
        """See `Objective`; every video that could be read weighs the same."""
        return self._rebuilt(output, row, turn) if turn.first else self._told(output, row, turn)

    def _rebuilt(self, output: list[Rebuilt], row: Row, turn: Turn) -> Score:
        """Of the tokenizer's turn."""
        options, learning = self.options, torch.is_grad_enabled()
        against = learning and LEARNS in row.context
        total, adversarial, numbers = [], [], []
        for part in output:
            weight = row.counted[part.members]
            error = part.made - part.real
            values = {"l1": per_video(error.abs()), "l2": per_video(error.square())}
            if self._features:
                values["feature"] = self._feature(part, turn)
            loss = options.l1 * values["l1"] + options.l2 * values["l2"]
            loss = loss + options.feature_weight * values["feature"] if self._features else loss
            if against:
                adversary: Any = turn.networks[DISCRIMINATOR]
                values["fooling"] = fooling(adversary.logits(part.made))
                adversarial.append((values["fooling"] * weight).sum())
            total.append((loss * weight).sum())
            numbers.append(self._numbers(values | self._seen(part, learning), weight))
        whole = torch.stack(total).sum()
        if not adversarial:
            return self._score(whole, row, numbers, "")
        fool = torch.stack(adversarial).sum()
        if not options.adaptive:
            return self._score(whole + options.adversarial * fool, row, numbers, "")
        tokenizer: Any = turn.networks[TOKENIZER]
        assert isinstance(tokenizer, Tokenizer)
        balanced = Balanced(fool, tokenizer.last, options.adversarial)
        return replace(self._score(whole, row, numbers, ""), balanced=(balanced,))

    def _feature(self, part: Rebuilt, turn: Turn) -> Tensor:
        """Of each video."""
        if self.options.feature == PYRAMID:
            return pyramid(part.made, part.real)
        found: Tensor = turn.networks[FEATURES](part.made, part.real)
        return found

    def _seen(self, part: Rebuilt, learning: bool) -> dict[str, Tensor]:
        """What is recorded and not learned from."""
        levels = self.options.levels
        made, codes = part.made.detach(), part.digits
        values = {"codes_of_a_clip": distinct(codes, levels), "level_use": level_use(codes, levels)}
        values["psnr"] = decibels(made, part.real)
        # Dear, so in validation alone.
        return values if learning else values | {"ssim": similarity(made, part.real)}

    def _told(self, output: list[Told], row: Row, turn: Turn) -> Score:
        """Of the discriminators' turn."""
        adversary: Any = turn.networks[DISCRIMINATOR]
        assert isinstance(adversary, Adversary)
        total, numbers = [adversary.nothing], []
        for part in output:
            weight = row.counted[part.members]
            total.append((hinge(part.real, part.fake) * weight).sum())
            real, fake = (torch.stack([per_video(x) for x in side]).mean(0) for side in (part.real, part.fake))
            right = [
                torch.stack([per_video((sign * x > 0).float()) for x in side]).mean(0)
                for sign, side in ((1, part.real), (-1, part.fake))
            ]
            values = {"logits_real": real, "logits_fake": fake, "right_on_real": right[0], "right_on_fake": right[1]}
            numbers.append(self._numbers(values, weight))
        return self._score(torch.stack(total).sum(), row, numbers, DISCRIMINATOR)

    @staticmethod
    def _numbers(values: dict[str, Tensor], weight: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of each number of videos ``[b]``."""
        return {name: ((value.detach() * weight).sum(), weight.sum().long()) for name, value in values.items()}

    def _score(self, total: Tensor, row: Row, numbers: list[dict[str, tuple[Tensor, Tensor]]], part: str) -> Score:
        """What is not among the numbers counts nothing."""
        names = [metric.name for metric in self.metrics if metric.part == part]
        none = total.new_zeros(()), torch.zeros((), dtype=torch.int64, device=total.device)
        found = [[one.get(name, none) for one in numbers] or [none] for name in names]
        sums, counts = (torch.stack([torch.stack([x[n] for x in pairs]).sum() for pairs in found]) for n in (0, 1))
        return Score(total, row.count, sums.float().detach(), counts)


def similarity(made: Tensor, real: Tensor) -> Tensor:
    """SSIM of each video ``[b, 3, F, H, W]``, the mean over its frames; made is clamped to [0, 1]."""
    frames = [video.transpose(1, 2).flatten(0, 1) for video in (made.clamp(0, 1), real)]
    return per_video(ssim(*frames).view(len(made), made.shape[2]))


def build(config: Config) -> Tokenizing:
    """See `objective.build`."""
    options = config.objective
    return Tokenizing(options, config.data.frames, options.start * config.train.global_batch_size)
