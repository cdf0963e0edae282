"""Callbacks of a run: who is told when, and what becomes of one that fails.

A failure ends no rank at once, for others would wait for it in the next step: it is kept, and travels with the question
that ranks ask each other after every step anyway.  One step later all of them know, save, and end together.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..callbacks.base import ASKED, FAILED, FINISHED, STOPPED, Callback, Context
from ..callbacks.found import build
from ..errors import PeerFailed, UserError, is_user_error, one_line
from ..platforms.together import fail_together, gather_results
from .connections import is_lost_connection
from .optimizer import whole_parameters
from .run import Run

log = logging.getLogger(__name__)

SIGNAL, STOP, FAILURE = 1, 2, 3
"""What a rank may wish for after a step, the more urgent the larger: the end that a signal or a callback asks for, or
the end because a callback has failed.
"""
LAST_HOURS = 24
"""How long ranks wait for one of them in `on_train_end`, which may upload a model."""


class CallbackFailed(Exception):
    """A fault of a callback, named; what it raised is the cause."""


class Callbacks:
    """Tells callbacks.  Every rank tells the same at the same points; without any callback nothing happens.

    phase: is told what the run does next.
    """

    def __init__(self, callbacks: dict[str, Callback], context: Context, phase: Callable[..., None]) -> None:
        self.callbacks, self.context, self.phase = callbacks, context, phase
        self.failure: Exception | None = None
        self.patient: Any = None

    @property
    def wish(self) -> int:
        """This rank's own, for the question after a step; 0 for none."""
        return FAILURE if self.failure is not None else STOP if self.context.reasons else 0

    @property
    def who_asked(self) -> str:
        """Why the run stops, in words; a reason may be another rank's alone."""
        if self.context.ending == ASKED:
            return "asked"
        return f"a callback asked{''.join(f' ({reason})' for reason in self.context.reasons[:1])}"

    def ends(self, wish: int) -> None:
        """The steps end early, for what some rank wished."""
        self.context.ending = {SIGNAL: ASKED, STOP: STOPPED, FAILURE: FAILED}[wish]

    def on_train_begin(self) -> None:
        """Raises on all ranks where a callback does: nothing is lost yet.  A collective."""
        if not self.callbacks:
            return
        self.phase("starting callbacks", limited=False)
        hours = datetime.timedelta(hours=LAST_HOURS)
        self.patient = torch.distributed.new_group(backend="gloo", timeout=hours)
        with fail_together(self.patient, "starting callbacks"):
            self._tell("on_train_begin", self.context.step)
            self._raise()

    def on_step_end(self, step: int) -> None:
        """See `Callback`, as below."""
        if self.callbacks:
            self.phase(f"callbacks after step {step}")
            self._tell("on_step_end", step)

    def on_log(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of a step before the one that is being launched."""
        self._tell("on_log", step, numbers)

    def on_evaluate(self, step: int, numbers: dict[str, float]) -> None:
        """Nothing is told where only a video was predicted."""
        if numbers:
            self._tell("on_evaluate", step, numbers)

    def on_save(self, checkpoint: Path) -> None:
        """What `checkpoint.save.Saver` calls."""
        self._tell("on_save", self.context.step, checkpoint)

    def on_train_end(self) -> None:
        """All of them, on all ranks, whatever has failed before; then the first failure is raised.  A collective."""
        if not self.callbacks:
            return
        self.phase("callbacks at the end", limited=False)
        ended = "after the last callbacks"
        if any(gather_results(lambda: self.failure is not None, self.patient, ended)):
            self.context.ending = FAILED
        self.context.ending = self.context.ending or FINISHED
        with fail_together(self.patient, ended):
            with self.context.whole_weights():
                self._tell("on_train_end", self.context.step)
            self._raise()

    def _tell(self, event: str, step: int, *what: Any) -> None:
        self.context.step = step
        for name, callback in self.callbacks.items():
            try:
                getattr(callback, event)(self.context, *what)
            except Exception as error:  # noqa: BLE001  (raised on all ranks, by `_raise`)
                if is_lost_connection(error) or isinstance(error, PeerFailed):
                    raise
                log.error("callback %s failed", name, exc_info=error)
                self.failure = self.failure or _named(error, f"callback {name}, {event} at step {step}")

    def _raise(self) -> None:
        if self.failure is not None:
            raise self.failure


def _named(error: Exception, where: str) -> Exception:
    kind = UserError if is_user_error(error) else CallbackFailed
    named = kind(f"{where}: {one_line(error)}")
    named.__cause__ = error
    return named


def callbacks_of(run: Run) -> Callbacks:
    """Those that the run's configuration names."""
    context = Context(
        config=run.config,
        output=run.output,
        platform=run.platform,
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        group=run.control,
        model=tuple(run.chunks),
        whole_weights=lambda: whole_parameters(run.wrapped),
        step=run.state.step,
    )
    return Callbacks(build(run.config.train.callbacks), context, run.phase)
