"""Callbacks that tests name in `train.callbacks`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import torch

from megatron_videogpt.callbacks import Callback, Context
from megatron_videogpt.errors import UserError


class Recorder(Callback):
    """Writes each event as a line: its name, step, ending and what else it was told.

    file: of this rank, ``{rank}`` stands for its number.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def _line(self, context: Context, event: str, **told: object) -> None:
        line = {"event": event, "step": context.step, "ending": context.ending, **told}
        with Path(str(self.file).format(rank=context.rank)).open("a") as out:
            out.write(json.dumps(line) + "\n")

    def on_train_begin(self, context: Context) -> None:
        self._line(context, "begin", ranks=context.world_size)

    def on_step_end(self, context: Context) -> None:
        self._line(context, "step")

    def on_log(self, context: Context, numbers: dict[str, float]) -> None:
        self._line(context, "log", numbers=numbers)

    def on_evaluate(self, context: Context, numbers: dict[str, float]) -> None:
        self._line(context, "evaluate", numbers=numbers)

    def on_save(self, context: Context, checkpoint: Path) -> None:
        self._line(context, "save", checkpoint=checkpoint.name, complete=(checkpoint / "state.json").is_file())

    def on_train_end(self, context: Context) -> None:
        with context.whole_weights():
            norm = sum(float(weight.detach().square().sum()) for weight in context.model[0].parameters())
        self._line(context, "end", weights=norm)


class Failing(Callback):
    """Fails on one rank at a step, in one event: with a fault, or with what a user can mend.  Gathers the steps of all
    ranks each time, as one that communicates.
    """

    def __init__(self, rank: int, event: str, step: int = 0, user: bool = False) -> None:
        self.rank, self.event, self.step, self.user = rank, event, step, user

    def _event(self, context: Context, event: str) -> None:
        steps = torch.tensor(context.step)
        torch.distributed.all_reduce(steps, group=context.group)
        assert int(steps) == context.world_size * context.step
        if event == self.event and context.rank == self.rank and context.step >= self.step:
            raise UserError("spoon = 0: must be above 0") if self.user else ZeroDivisionError("no spoon")

    def on_train_begin(self, context: Context) -> None:
        self._event(context, "on_train_begin")

    def on_step_end(self, context: Context) -> None:
        self._event(context, "on_step_end")

    def on_save(self, context: Context, checkpoint: Path) -> None:
        self._event(context, "on_save")

    def on_train_end(self, context: Context) -> None:
        self._event(context, "on_train_end")


class Stopper(Callback):
    """One rank asks to stop after a step, or gets a signal then."""

    def __init__(self, rank: int, step: int, signalled: bool = False) -> None:
        self.rank, self.step, self.signalled = rank, step, signalled

    def on_step_end(self, context: Context) -> None:
        if (context.rank, context.step) == (self.rank, self.step):
            if self.signalled:
                signal.raise_signal(signal.SIGUSR1)
            else:
                context.stop("good enough")


class Careful(Callback):
    """Has arguments of several types, refuses some values, and some runs."""

    def __init__(self, steps: int, share: float = 0.5, names: tuple[str, ...] = (), mode: str | None = None) -> None:
        if steps < 1:
            raise UserError(f"steps = {steps} must be at least 1")
        self.steps, self.share, self.names, self.mode = steps, share, names, mode

    def check(self, config: object) -> None:
        if config.train.steps < self.steps:  # type: ignore[attr-defined]
            raise UserError(f"steps = {self.steps} are more than train.steps")


class NotOne:
    """No callback."""
