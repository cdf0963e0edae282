"""What an objective supplies: packed rows, the model's two ends, a loss with the numbers beside it, its sampler.  The
trainer never branches on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..data.plans import Sample
from ..sequence.row import Row


@dataclass(frozen=True)
class Metric:
    """A number that is recorded beside the loss: a mean, of the sum and the count that `Score` has of it.

    family: metrics that are drawn together, also what TensorBoard groups them by; label: its name in the drawing.
    """

    name: str
    family: str
    label: str


@dataclass(frozen=True)
class Score:
    """What a row, or a shard of one, came to.

    total: the loss summed over the shard's tokens, float32 ``[]`` with its graph; count: units that the shard counts;
    sums, counts: of the objective's `metrics` in their order, float32 and int64 ``[metrics]``, on the device.
    """

    total: Tensor
    count: int
    sums: Tensor
    counts: Tensor


class Objective(Protocol):
    """See the module's text; `prepare` is a pure function of the samples (and the keys they carry).

    unit: what the loss is a mean of ("frame"); loss_label: what the loss is, for the drawing; metrics: see `Metric`.
    """

    unit: str
    loss_label: str
    metrics: tuple[Metric, ...]

    def length(self, sample: Sample) -> int:
        """Tokens of one sample in a row."""

    def prepare(self, samples: list[Sample], multiple: int) -> Row:
        """One micro-batch as a packed row, padded to a multiple of `multiple` tokens: noise and targets from each
        sample's key.
        """

    def score(self, output: Tensor, row: Row) -> Score:
        """Model output for a row or a shard -> its loss and numbers.

        Samples that are not scored add nothing to any of them.
        """
