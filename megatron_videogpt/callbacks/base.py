"""What a callback is, and what it is told.  The names of its methods are those of transformers' `TrainerCallback`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import Config

if TYPE_CHECKING:
    from ..platforms import Platform

FINISHED, ASKED, STOPPED, FAILED = "finished", "asked", "stopped", "failed"
"""Why a run ends: all steps are done, a signal asked, a callback asked, a callback failed."""


@dataclass
class Context:
    """What a callback may know of its run, on every rank.

    config: resolved; output: the run's folder; platform: the device and what can be asked of it; rank, world_size: of
    this process; group: of all ranks, for collectives on CPU tensors; model: this rank's chunks of the network that is
    sampled, to be read only; whole_weights: a context in which their weights are up to date, a collective of all ranks
    (`on_evaluate` and `on_train_end` are called in one).

    step: of what is told: in `on_log` the step of the numbers; ending: "" while steps go on, then `FINISHED`, `ASKED`
    (by a signal), `STOPPED` (by a callback) or `FAILED` (a callback did).
    """

    config: Config
    output: Path
    platform: Platform
    rank: int
    world_size: int
    group: Any
    model: tuple[Any, ...]
    whole_weights: Callable[[], AbstractContextManager[Any]]
    step: int = 0
    ending: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank speaks, and writes, for the run."""
        return self.rank == 0

    def stop(self, reason: str) -> None:
        """Ask for a checkpoint and a clean end of all ranks, after the step that follows; one rank's word is enough."""
        self.reasons.append(reason)


class Callback:
    """Told of a run.  Each method is called on every rank, in the order of `train.callbacks`: one that communicates
    does so on all of them, and what one rank alone is to do stands behind ``if context.is_rank_zero``.

    Its constructor takes the arguments of the configuration and refuses wrong ones with UserError.  `check` makes one
    too, so it opens nothing and asks no network.
    """

    def check(self, config: Config) -> None:
        """Raise UserError, in one line, where it cannot do its work in such a run; asked by `check` and before the
        run starts.  As the constructor: no device, no network, no file is written.
        """

    def on_train_begin(self, context: Context) -> None:
        """Before the first step of this start; `context.step` is where it goes on from."""

    def on_step_end(self, context: Context) -> None:
        """A step is queued; the device may be at work on it, and nothing here should wait for it."""

    def on_log(self, context: Context, numbers: dict[str, float]) -> None:
        """The numbers of a log line (`logging.every`), one step later, when they are there; the same on all ranks."""

    def on_evaluate(self, context: Context, numbers: dict[str, float]) -> None:
        """The numbers of a validation, the same on all ranks."""

    def on_save(self, context: Context, checkpoint: Path) -> None:
        """A checkpoint is complete under its name; one that was written in the background is of an earlier step."""

    def on_train_end(self, context: Context) -> None:
        """The steps are over, all is saved: `context.ending` says why.  Every callback is told, even where another one
        fails; not where the run itself fails, for its ranks may be anywhere then.
        """
