"""A window of steps under the device's profiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..data.locks import write_whole
from ..errors import UserError
from .base import Callback, Context

log = logging.getLogger(__name__)

FOLDER = "profile"
"""In the run's folder."""
ROWS = 60
"""Operators in a table."""


class Profiler(Callback):
    """Traces `active` steps, once, after `wait` + `warmup` others of this start.

    Of each of `ranks`, ``profile/`` in the run's folder gets ``steps_8-10_rank_0.json`` (a Chrome trace: chrome://tracing
    or ui.perfetto.dev) and ``.txt`` (operators by time); with `memory`, a second table by memory, and on GPUs
    ``.pickle``, the allocator's history (pytorch.org/memory_viz).

    Args:
        wait: steps that run freely first.
        warmup: steps under the profiler whose numbers are thrown away.
        active: steps that are traced.
        ranks: those that are traced; [] for all.
        memory: trace allocations too.
        shapes: record the operators' input shapes.
        stack: record where in the source they were called.
    """

    def __init__(
        self,
        wait: int = 5,
        warmup: int = 2,
        active: int = 3,
        ranks: tuple[int, ...] = (0,),
        memory: bool = False,
        shapes: bool = False,
        stack: bool = False,
    ) -> None:
        for name, value, least in (("wait", wait, 0), ("warmup", warmup, 0), ("active", active, 1)):
            if value < least:
                raise UserError(f"{name} = {value} must be at least {least}")
        if any(rank < 0 for rank in ranks):
            raise UserError(f"ranks = {list(ranks)} must be numbers from 0; [] for all")
        self.wait, self.warmup, self.active, self.ranks = wait, warmup, active, ranks
        self.memory, self.shapes, self.stack = memory, shapes, stack
        self.first = 0
        self.profile: Any = None

    def check(self, config: Config) -> None:
        """The window lies within the run."""
        steps = self.wait + self.warmup + self.active
        if steps > config.train.steps:
            raise UserError(
                f"wait + warmup + active = {steps} steps, but train.steps = {config.train.steps}; use fewer"
            )

    def on_train_begin(self, context: Context) -> None:
        """Start the profiler, which waits by itself."""
        beyond = [rank for rank in self.ranks if rank >= context.world_size]
        if beyond:
            raise UserError(f"ranks = {list(self.ranks)}: the run has {context.world_size}, from 0 on")
        if self.ranks and context.rank not in self.ranks:
            return
        tools = context.platform.profiling()
        self.first = context.step + self.wait + self.warmup + 1
        self.profile = tools.profile(
            activities=list(tools.activities),
            schedule=tools.schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=lambda profile: self._write(profile, context),
            profile_memory=self.memory,
            record_shapes=self.shapes,
            with_stack=self.stack,
        )
        self.profile.start()
        self._record(context)

    def on_step_end(self, context: Context) -> None:
        """One step further; after the last one nothing is left of the profiler."""
        if self.profile is None:
            return
        self.profile.step()
        self._record(context)
        if context.step == self.first + self.active - 1:
            self._stop()

    def on_train_end(self, context: Context) -> None:
        """A run that ends early writes what it has."""
        if self.profile is not None:
            if context.step < self.first:
                log.warning("profiler: the run ended at step %d, before step %d", context.step, self.first)
            self._stop()

    def _stop(self) -> None:
        profile, self.profile = self.profile, None
        profile.stop()

    def _record(self, context: Context) -> None:
        """The allocator's history begins with the first step of the window."""
        record = context.platform.profiling().record
        if self.memory and record is not None and context.step == self.first - 1:
            record()

    def _write(self, profile: Any, context: Context) -> None:
        tools, folder = context.platform.profiling(), context.output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = f"steps_{self.first}-{context.step}_rank_{context.rank}"
        trace = folder / f"{name}.json"
        write_whole(trace, lambda partial: profile.export_chrome_trace(str(partial)))
        columns = {"": tools.time, **({"_memory": tools.memory} if self.memory else {})}
        # A vendor's profiler may have no tables.
        for suffix, column in columns.items() if hasattr(profile, "key_averages") else ():
            text = profile.key_averages().table(sort_by=column, row_limit=ROWS)
            write_whole(folder / f"{name}{suffix}.txt", _writer(text))
        if self.memory and tools.dump is not None:
            write_whole(folder / f"{name}.pickle", tools.dump)
        log.info("profiler: wrote %s", trace)


def _writer(text: str) -> Any:
    def write(partial: Path) -> None:
        partial.write_text(text + "\n", encoding="utf-8")

    return write
