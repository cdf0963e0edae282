"""What a run shows while it trains: a progress bar or lines."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A progress bar in a terminal, plain lines elsewhere; silent on other ranks than 0.  Use as a context manager
    around the steps.

    Args:
        total: steps of the whole run.
        start: steps done before.
        rank0: whether this process shows anything.
        console: where to; standard error by default.
    """

    def __init__(self, total: int, start: int, rank0: bool, console: Console | None = None) -> None:
        self.total, self.rank0 = total, rank0
        self.console = console or Console(stderr=True)
        self.bar: Bar | None = None
        if rank0 and self.console.is_terminal:
            columns = (
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            # Speed is judged over ten minutes, because steps of different lengths vary.
            self.bar = Bar(*columns, console=self.console, speed_estimate_period=600)
            self.task = self.bar.add_task("training", total=total, completed=start, line="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show step `step`; of the values, the loss, tokens/s, seconds per step and learning rate are used where
        present.
        """
        if not self.rank0:
            return
        text = summary(values)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, line=text)
        else:
            remaining = (self.total - step) * values.get("step_time", math.nan)
            left = f"  {_duration(remaining)} left" if math.isfinite(remaining) else ""
            self.console.print(f"step {step}/{self.total}  {text}{left}", highlight=False, soft_wrap=True)


def summary(values: dict[str, float]) -> str:
    """The numbers of a log line that a reader follows, in a few words."""
    shown = (
        ("loss", "loss {:.4f}"),
        ("grad_norm", "grad {:.2f}"),
        ("learning_rate", "lr {:.1e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    return "  ".join(pattern.format(values[name]) for name, pattern in shown if name in values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def tell_validation(step: int, total: int, values: dict[str, float], console: Console | None = None) -> None:
    """A line with the validation loss after a step, and its standard error where there is one; nothing where the loss
    was not measured.
    """
    if "validation_loss" not in values:
        return
    error = values.get("validation_se_loss")
    sure = "" if error is None else f" +- {error:.4f}"
    text = f"step {step}/{total}  validation loss {values['validation_loss']:.4f}{sure}"
    (console or Console(stderr=True)).print(text, highlight=False, soft_wrap=True)
