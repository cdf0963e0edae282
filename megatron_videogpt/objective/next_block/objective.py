"""Next block prediction: every token predicts the code at its place in the next block (tests/golden/nbp/README.md names
the source).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...codec.fsq import ids_of
from ...codec.geometry import expected_levels
from ...config.schema import Config
from ...data.plans import Sample
from ...errors import UserError
from ...sequence.row import Row
from ..base import ONLY, Metric, Score, Turn
from .loss import Scored
from .rows import assemble
from .sequence import Sequence, block_order, ends, filler, ids_and_targets
from .vocabulary import HYBRID, Vocabulary, vocabulary_of
from .work import BlockWork

FRAMES = 16
"""Latent frames that have a loss of their own; later ones share the last."""
BEST = (1, 5)
"""Of how many of the likeliest words the target is to be one, for the accuracies."""


def _metrics(frames: int) -> tuple[Metric, ...]:
    names = [f"{n}{'+' if n == FRAMES - 1 and frames > FRAMES else ''}" for n in range(min(frames, FRAMES))]
    accuracies = [Metric(f"accuracy_top{best}", "accuracy", f"top {best}") for best in BEST]
    return (*accuracies, *(Metric(f"loss_frame{name}", "loss_by_frame", f"frame {name}") for name in names))


@dataclass(frozen=True)
class NextBlock:
    """The objective.  levels: of the codec; shape: of a block, () for runs of the raster order; prefix: tokens of a
    condition; frames: most latent frames of a video.

    A dropped condition, or none where there should be one, keeps its place: other embeddings stand there.
    """

    unit: ClassVar[str] = "token"
    loss_label: ClassVar[str] = "cross entropy"

    vocabulary: Vocabulary
    levels: tuple[int, ...]
    shape: tuple[int, ...] = ()
    prefix: int = 0
    frames: int = 1

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See `Objective`: accuracies, and the loss by latent frame of what is predicted."""
        return _metrics(self.frames)

    def length(self, sample: Sample) -> int:
        """See `Objective`."""
        count, _, rows, columns = sample.mean.shape
        tokens = count * rows * columns
        if _too_small(sample, self.vocabulary):
            return tokens
        return int(BlockWork(self.vocabulary, self.prefix).of_tokens(tokens).tokens)

    def sequence(self, sample: Sample) -> Sequence:
        """One sample: its codes as ids, in the order of blocks."""
        codes = ids_of(sample.mean, self.levels)
        if _too_small(sample, self.vocabulary):
            return filler(codes.numel(), self.vocabulary)
        frames, rows, columns = codes.shape
        order = torch.arange(codes.numel())
        if self.shape:
            order = block_order((frames, rows, columns), (self.shape[0], self.shape[1], self.shape[2]))
        told = sample.condition is not None and not sample.dropped
        condition = sample.condition if told and sample.condition is not None else torch.zeros(self.prefix).long()
        if len(condition) != self.prefix:
            raise UserError(f"{sample.name}: a condition of {len(condition)} tokens, expected {self.prefix}")
        return self.of_codes(codes.flatten()[order], order // (rows * columns), condition, sample, not told)

    def of_codes(
        self, codes: Tensor, frames: Tensor, condition: Tensor, sample: Sample | None = None, dropped: bool = False
    ) -> Sequence:
        """Codes int64 ``[N]`` in the order of blocks, each of a latent frame int64 ``[N]``, behind condition tokens
        int64 ``[m]``.
        """
        ids, targets = ids_and_targets(codes, condition, self.vocabulary)
        seen = ends(len(ids), self.vocabulary.block, len(condition), self.vocabulary.layout == HYBRID)
        of_targets = frames[len(frames) - len(targets) :]
        scored, key = (True, 0) if sample is None else (sample.scored, sample.key)
        return Sequence(ids, seen, len(condition), targets, of_targets, scored, dropped and self.prefix > 0, key)

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """See `Objective`."""
        return assemble([self.sequence(sample) for sample in samples], multiple)

    def given(self, row: Row, turn: Turn) -> Row:
        """See `Objective`."""
        return row

    def score(self, output: Scored, row: Row, turn: Turn = ONLY) -> Score:
        """See `Objective`; every scored token of every sample weighs the same."""
        frame = row.streams["video"]["frame"].clamp(max=FRAMES - 1)
        places = torch.arange(min(self.frames, FRAMES), device=frame.device)[:, None]
        right = torch.stack([output.above < best for best in BEST])
        values = torch.cat([right.float(), output.nll.expand(len(places), -1)]) * row.weight
        # Each shard counts its own tokens, unlike the units of the loss, which the first one counts.
        whose = torch.cat([torch.ones_like(right), frame == places]) & (row.weight > 0)
        return Score(output.total, row.count, values.masked_fill(~whose, 0.0).sum(1), whose.sum(1))


def _too_small(sample: Sample, vocabulary: Vocabulary) -> bool:
    """Whether this only holds the place of a row without samples."""
    count, _, rows, columns = sample.mean.shape
    return not sample.scored and bool(count * rows * columns % vocabulary.block)


def build(config: Config) -> NextBlock:
    """See `objective.build`."""
    options, prefix = config.objective, config.condition.most_tokens
    levels = expected_levels(config.codec)
    return NextBlock(vocabulary_of(config), levels, options.block_shape, prefix, config.data.frames)
