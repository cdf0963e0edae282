"""Writing checkpoints: in the foreground or the background, with retries, keeping the newest and the marked ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from ..config.load import config_to_toml
from ..config.schema import Config
from ..platforms import compat
from .checkpoint import sharded_weights
from .distributed import RunError, is_rank_zero
from .ema import Average
from .folders import checkpoint_name, checkpoint_root, complete, latest

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class Saver:
    """Saves one run.  All methods are collective.

    chunks: the model chunks of this rank (without their wrapping); average: of the weights, or None; codec: its fingerprint.
    """

    def __init__(self, config: Config, chunks: Sequence[nn.Module], optimizer: Any, average: Average | None, codec: str) -> None:
        self.config, self.chunks, self.optimizer, self.average, self.codec = config, chunks, optimizer, average, codec
        self.run = Path(config.train.output)
        self.queue = AsyncCallsQueue()
        self.writing: dict[str, Any] | None = None

    def save(self, state: dict[str, Any], must: bool, again: bool = False) -> Path | None:
        """Write a checkpoint of step ``state["step"]``; returns its folder, or None when it is still being written or could not be.

        A failed attempt leaves what was there before and is repeated `checkpoint.retries` times.  After that, a RunError on every rank if `must`,
        else a warning.  Background saves (`checkpoint.async_save`) are for periodic ones: `must` writes in the foreground, and so does `again`,
        after a background save that failed.
        """
        self.finish()
        state = {**state, "codec": self.codec, "seed": self.config.train.seed, "ema": self.average is not None}
        background = self.config.checkpoint.async_save and not must and not again
        for attempt in range(1 + self.config.checkpoint.retries):
            if attempt:
                time.sleep(RETRY_SECONDS)
            error = self._start(state) if background else self._write(state)
            if not error:
                return None if background else self._folder(state)
            self._report(state, error, fatal=must and attempt == self.config.checkpoint.retries)
        return None

    def poll(self) -> bool:
        """Complete a background save that all ranks have written; returns at once while one is still writing, and True when one failed."""
        return self._complete(wait=False)

    def finish(self) -> bool:
        """Wait for a background save and complete it; returns True when it failed."""
        return self._complete(wait=True)

    def _folder(self, state: dict[str, Any]) -> Path:
        return checkpoint_root(self.run) / checkpoint_name(state["step"])

    def _partial(self, state: dict[str, Any]) -> Path:
        return self._folder(state).with_name(f"{checkpoint_name(state['step'])}.partial")

    def _prepare(self, state: dict[str, Any]) -> str:
        error = ""
        if is_rank_zero():
            try:
                shutil.rmtree(self._partial(state), ignore_errors=True)
                self._partial(state).mkdir(parents=True)
            except OSError as problem:
                error = str(problem)
        return _first_error(error)

    def _contents(self) -> dict[str, Any]:
        weights = sharded_weights(self.chunks)
        with compat.packed_buckets(self.optimizer):
            contents = {"model": weights, "optimizer": self.optimizer.sharded_state_dict(weights, metadata=compat.OPTIMIZER_FORMAT)}
        if self.average is not None:
            contents["ema"] = self.average.sharded(weights)
        return contents

    def _write(self, state: dict[str, Any]) -> str:
        """One attempt in the foreground; returns why it failed, the same on every rank."""
        error = self._prepare(state)
        if not error:
            try:
                dist_checkpointing.save(self._contents(), str(self._partial(state)))
            # megatron-core wraps whatever went wrong on any rank (a full disk, a lost mount) in exceptions of several kinds, one of them no Exception.
            except (Exception, CheckpointException) as problem:  # noqa: BLE001  (reported on every rank)
                error = _root_cause(problem)
        return self._publish(state, _first_error(error))

    def _start(self, state: dict[str, Any]) -> str:
        """Hand a copy of everything to a background process."""
        error = self._prepare(state)
        if not error:
            try:
                request = dist_checkpointing.save(self._contents(), str(self._partial(state)), async_sharded_save=True)
                self.queue.schedule_async_request(request)
            except (Exception, CheckpointException) as problem:  # noqa: BLE001  (reported on every rank)
                error = _root_cause(problem)
        error = _first_error(error)
        if error:
            self._discard(state)
        self.writing = None if error else state
        return error

    def _complete(self, wait: bool) -> bool:
        if self.writing is None:
            return False
        state, error = self.writing, ""
        try:
            if not self.queue.maybe_finalize_async_calls(blocking=wait):
                return False
        except (Exception, CheckpointException) as problem:  # noqa: BLE001  (reported on every rank)
            error = _root_cause(problem)
        self.writing = None
        error = self._publish(state, _first_error(error))
        if error:
            self._report(state, error, fatal=False)
        return bool(error)

    def _publish(self, state: dict[str, Any], error: str) -> str:
        """Make a written checkpoint complete and drop old ones, or remove what is left of a failed one; returns the error that stands."""
        partial, final = self._partial(state), self._folder(state)
        if not error and is_rank_zero():
            try:
                (partial / "config.toml").write_text(config_to_toml(self.config), encoding="utf-8")
                _write_durably(partial / "state.json", json.dumps(state))
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
                prune(self.run, self.config.checkpoint.keep, self.config.checkpoint.keep_every)
            except OSError as problem:
                error = str(problem)
        error = _first_error(error)
        if error:
            self._discard(state)
        return error

    def _discard(self, state: dict[str, Any]) -> None:
        if is_rank_zero():
            shutil.rmtree(self._partial(state), ignore_errors=True)

    def _report(self, state: dict[str, Any], error: str, fatal: bool) -> None:
        root, before = checkpoint_root(self.run), latest(self.run)
        left = f"the newest complete one is {'still ' + before.name if before else 'none yet'}"
        free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / 2**20
        space = f"{free:.1f} MiB of disk space are free and about {self._bytes_needed() / 2**20:.1f} are needed"
        text = f"checkpoint of step {state['step']} could not be saved to {root}: {error}; {left}; {space}"
        if fatal:
            raise RunError(f"{text}; start again to resume")
        if is_rank_zero():
            log.warning("%s; training goes on", text)

    def _bytes_needed(self) -> int:
        """Rough size of a checkpoint: fp32 main parameters, two moments and the average, and the parameters themselves."""
        states = 12 + 4 * (self.average is not None)
        return sum(p.numel() * (states + p.element_size()) for chunk in self.chunks for p in chunk.parameters()) * self.config.parallel.model_size


def prune(run: Path, keep: int, keep_every: int) -> None:
    """Drop all but the newest `keep` checkpoints (0 keeps all) and those of steps that are multiples of `keep_every` (0 for none)."""
    steps = {path: int(path.name.removeprefix("step_")) for path in complete(run)}
    for path in list(steps)[:-keep] if keep else []:
        if not (keep_every and steps[path] % keep_every == 0):
            shutil.rmtree(path, ignore_errors=True)


def _first_error(error: str) -> str:
    """The first rank's error message that is not empty, the same on every rank."""
    errors: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(errors, error)
    return next((text for text in errors if text), "")


def _root_cause(problem: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    seen: BaseException = problem
    failures = getattr(problem, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        seen = first[0] if isinstance(first, tuple) else first
    while seen.__cause__ is not None or seen.__context__ is not None:
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return f"{type(seen).__name__}: {' '.join(str(seen).split())[:300]}"


def _write_durably(path: Path, text: str) -> None:
    """Replace a small file in one move, after its bytes are on the disk."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
