"""The checkpoint with the best validation loss, or another number, stays whatever `checkpoint.keep` says."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from ..checkpoint.folders import best_record, checkpoint_name, complete_folders, prune_by, read_best, step_of
from ..config.schema import Config
from ..data.locks import write_whole
from ..errors import UserError
from .base import Callback, Context

log = logging.getLogger(__name__)

MODES = ("min", "max")


class KeepBest(Callback):
    """Compares checkpoints by a number that is logged, or measured by validation, at their very step.

    ``checkpoints/best_NUMBER.json`` names the best one: ``{"monitor", "mode", "step", "value", "checkpoint"}``.  The
    earlier of two equal ones stays the best; what is not finite never is.  The record outlives the run, and one whose
    checkpoint is gone does not count.

    Args:
        monitor: the number's name, as in metrics.jsonl.
        mode: ``min`` where less is better, or ``max``.
    """

    def __init__(self, monitor: str = "validation_loss", mode: str = "min") -> None:
        if mode not in MODES:
            raise UserError(f"mode = {mode!r} must be one of {', '.join(MODES)}")
        self.monitor, self.mode = monitor, mode
        self.values: dict[int, float] = {}
        self.seen: set[str] = set()
        self.saved: set[int] = set()

    def check(self, config: Config) -> None:
        """There are steps that have both the number and a checkpoint."""
        measured = self.monitor.startswith("validation_")
        every, option = (config.eval.every, "eval.every") if measured else (config.logging.every, "logging.every")
        if not every:
            raise UserError(f"monitor = {self.monitor} is never measured with {option} = 0; use for example {option}=1")
        saves = config.checkpoint.every
        if saves and saves % every and math.lcm(saves, every) >= config.train.steps:
            raise UserError(
                f"checkpoint.every = {saves} and {option} = {every} meet at the last step alone; make the first a "
                "multiple of the second"
            )

    def on_train_begin(self, context: Context) -> None:
        """A run that has ended measures its last step again."""
        self.saved = {step_of(path) for path in complete_folders(context.output)}

    def on_log(self, context: Context, numbers: dict[str, float]) -> None:
        """Remember, and compare where there is a checkpoint already."""
        self.seen |= numbers.keys()
        if self.monitor in numbers:
            self.values[context.step] = numbers[self.monitor]
            if context.step in self.saved:
                self._compare(context)

    def on_evaluate(self, context: Context, numbers: dict[str, float]) -> None:
        """The same.  Validation measures the same numbers every time."""
        if self.monitor.startswith("validation_") and self.monitor not in numbers:
            raise UserError(f"monitor = {self.monitor}: no such number; validation measures {', '.join(numbers)}")
        self.on_log(context, numbers)

    def on_save(self, context: Context, checkpoint: Path) -> None:
        """The number of its step may be there already."""
        step = step_of(checkpoint)
        if self.monitor not in self.seen and self.seen and not self.monitor.startswith("validation_"):
            raise UserError(f"monitor = {self.monitor}: no such number; there are {', '.join(sorted(self.seen))}")
        self.saved.add(step)
        self._compare(context)
        self.values = {known: value for known, value in self.values.items() if known >= step}

    def _compare(self, context: Context) -> None:
        """Rank 0 alone looks and writes."""
        if not context.is_rank_zero:
            return
        try:
            self._record(context)
        except OSError as error:
            log.warning("%s: cannot be written (%s)", best_record(context.output, self.monitor), error)

    def _record(self, context: Context) -> None:
        saved = {step_of(path) for path in complete_folders(context.output)}
        record = best_record(context.output, self.monitor)
        best = read_best(record)
        best = best if best is not None and best["step"] in saved else None
        for step in sorted(saved & self.values.keys()):
            value = self.values[step]
            if math.isfinite(value) and (best is None or self._better(value, best["value"])):
                best = {"step": step, "value": value, "checkpoint": checkpoint_name(step)}
                text = json.dumps({"monitor": self.monitor, "mode": self.mode, **best}, indent=2) + "\n"
                write_whole(record, lambda partial: partial.write_text(text, encoding="utf-8"))  # noqa: B023
                log.info("best checkpoint by %s: %s (%g)", self.monitor, best["checkpoint"], value)
                # The one before is now like any other.
                prune_by(context.config, context.output)

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.mode == "min" else value > than
