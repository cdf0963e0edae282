"""What an objective supplies: packed rows, its networks, a loss with the numbers beside it.  The trainer never branches
on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..config.schema import Config, OptimizerConfig, SampleConfig
from ..data.plans import Sample
from ..platforms import Platform
from ..sequence.row import Row

Build = Callable[[Config, int, Platform, str, int], nn.Module]
"""`build(config, channels, platform, backend, chunk)`: one chunk of this pipeline rank's stage of a network, a
megatron-core module (`model.videogpt.VideoGPT` is one); see `objective.build.build_network`.
"""


@dataclass(frozen=True)
class Part:
    """One of an objective's networks; the first one is the model that is sampled and exported.

    build: see `Build`; trained: with an optimizer of its own, or frozen.  start: fills this rank's chunks, from the
    run's seed, instead of the network's table of parameters; what is frozen gets its weights there each time the run
    starts, and is in no checkpoint.  average_of: the part whose weights it follows, in float32, ``average = decay *
    average + (1 - decay) * weights`` after every update of them, and which it starts from.  optimizer: the part's own
    options, from those of the run.
    """

    name: str
    build: Build
    trained: bool = True
    start: Callable[[Sequence[nn.Module], int], None] | None = None
    average_of: str = ""
    decay: float = 0.0
    optimizer: Callable[[OptimizerConfig], OptimizerConfig] = lambda options: options


@dataclass(frozen=True)
class Turn:
    """Whose step it is.  part: the name; first: whether it is the objective's first; networks: those of this rank by
    name, to be asked: gradients go through them, and to the weights of `part` alone.
    """

    part: str = "model"
    first: bool = True
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tells this turn's numbers from the first one's."""
        return "" if self.first else self.part


ONLY = Turn()
"""Of an objective with one network."""


@dataclass(frozen=True)
class Metric:
    """A number that is recorded beside the loss: a mean, of the sum and the count that `Score` has of it.

    family: metrics that are drawn together, also what TensorBoard groups them by; label: its name in the drawing; part:
    in whose turn it is counted, "" in the first one's; held_out: whether it is counted in validation alone, where no
    gradient is taken.  Those of a turn that are come last.
    """

    name: str
    family: str
    label: str
    part: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class Balanced:
    """A second loss, weighted by the ratio of gradients: ``factor * min(limit, |d total / d by| / (|d this / d by| +
    eps))`` (the adaptive weight of an adversarial loss: Esser et al. 2021, section 3.1, eq. 7).

    total: summed as `Score.total`; by: a parameter that both depend on, one that is whole on every rank.
    """

    total: Tensor
    by: nn.Parameter
    factor: float = 1.0
    limit: float = 1e4
    eps: float = 1e-4


@dataclass(frozen=True)
class Score:
    """What a row, or a shard of one, came to.

    total: the loss summed over the shard's tokens, float32 ``[]`` with its graph; count: units that the shard counts;
    sums, counts: of the turn's `metrics` in their order, float32 and int64 ``[metrics]``, on the device; without those
    that are `held_out` where gradients are taken (`torch.is_grad_enabled`); balanced: what is added to the loss for its
    gradient, with weights that depend on it.
    """

    total: Tensor
    count: int
    sums: Tensor
    counts: Tensor
    balanced: tuple[Balanced, ...] = ()


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

    def given(self, row: Row, turn: Turn) -> Row:
        """What the network whose turn it is gets: the row or shard itself, or one with what others made of it."""

    def score(self, output: Any, row: Row, turn: Turn) -> Score:
        """What that network made of it -> its loss and numbers.

        Samples that are not scored add nothing to any of them.
        """


Watch = Callable[[float, int], None]
"""Told after each step of a sampler how many latent frames, fractions included, and how many tokens it made, of all
videos together; tokens are 0 where steps make none for good.
"""


class Sampler(Protocol):
    """A model that continues videos, clip after clip."""

    def rollout(
        self,
        histories: list[Tensor],
        settings: SampleConfig,
        keys: Sequence[int],
        seed: int,
        conditions: list[Tensor | None] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Tensor]]:
        """Yields per clip of the settings the new latents of all videos ``[G, C, h, w]``, given at most a window.

        Whether there is a cache is settled when the sampler is built.  Raises UserError, one line, for settings that
        cannot be sampled with.

        Args:
            histories: per video latents ``[H, C, h, w]``, H may be 0, and sizes may differ.
            keys: per video what its randomness depends on, beside the seed; on nothing else of it.
            conditions: per video what it is to show: int64 ``[1]``, the number of a class, or float32 ``[T, E]``,
                features of a text; None for nothing.
        """
