"""Writing checkpoints: in the foreground or the background, with retries, keeping the newest and the marked ones."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..config.schema import Config
from ..config.toml import config_to_toml
from ..errors import RunError
from ..platforms import compat, compat_saving
from ..platforms.together import first_error, from_rank_zero, raise_together
from ..platforms.world import is_rank_zero
from .average import Average
from .failures import FAILURES, root_cause
from .folders import checkpoint_name, checkpoint_root, newest_folder, partial_of, prune_by, publish, remove_leftovers
from .parts import SavedPart, part_contents, sharded_weights
from .whole import seal

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class Saver:
    """Saves one run.  All methods are collective.

    chunks: the model chunks of this rank (without their wrapping); average: of the weights, or None; codec: its
    fingerprint; group: of all ranks, for small messages; parts: the objective's further networks; text_encoder: the
    fingerprint of that; saved: told of each checkpoint that is complete, on every rank.  Raises RunError on every rank
    where `checkpoint.async_save` asks for what the installed megatron-core cannot do.
    """

    def __init__(
        self,
        config: Config,
        chunks: Sequence[nn.Module],
        optimizer: Any,
        average: Average | None,
        codec: str,
        group: Any = None,
        parts: Sequence[SavedPart] = (),
        text_encoder: str = "",
        saved: Callable[[Path], Any] = lambda path: None,
    ) -> None:
        self.config, self.chunks, self.optimizer, self.average = config, chunks, optimizer, average
        self.codec, self.group, self.parts, self.text_encoder = codec, group, parts, text_encoder
        self.saved = saved
        self.run = Path(config.train.output)
        obstacle = compat_saving.background_obstacle() if config.checkpoint.async_save else ""
        if obstacle:
            obstacle = (
                "checkpoint.async_save = true: the installed megatron-core cannot save in the background "
                f"({obstacle}); use checkpoint.async_save=false"
            )
        raise_together(obstacle, group, "looking for background saves")
        self.queue: Any = compat_saving.background_calls() if config.checkpoint.async_save else None
        self.writing: tuple[dict[str, Any], Any] | None = None
        if is_rank_zero():
            remove_leftovers(self.run)

    def save(self, state: dict[str, Any], must: bool, again: bool = False) -> Path | None:
        """Write a checkpoint of step ``state["step"]``; returns its folder, or None when it is still being written or
        could not be.

        A failed attempt leaves what was there before and is repeated `checkpoint.retries` times.  After that, a
        RunError on every rank if `must`, else a warning.  Background saves (`checkpoint.async_save`) are for periodic
        ones: `must` writes in the foreground, and so does `again`, after a background save that failed, and so do
        repetitions.
        """
        self.finish()
        names = [part.name for part in self.parts]
        encoders = {"codec": self.codec, "text_encoder": self.text_encoder}
        state = {**state, "parts": names, **encoders, "seed": self.config.train.seed}
        state["ema"] = self.average is not None
        for attempt in range(1 + self.config.checkpoint.retries):
            if attempt:
                time.sleep(RETRY_SECONDS)
            background = self.config.checkpoint.async_save and not (must or again or attempt)
            error = self._start(state) if background else self._write(state)
            if not error:
                return None if background else self._folder(state)
            self._report(state, error, fatal=must and attempt == self.config.checkpoint.retries)
        return None

    def poll(self) -> bool:
        """Complete a background save that all ranks have written; returns at once while one is still writing, and True
        when one failed.
        """
        return self._complete(wait=False)

    def finish(self) -> bool:
        """Wait for a background save and complete it; returns True when it failed."""
        return self._complete(wait=True)

    def _folder(self, state: dict[str, Any]) -> Path:
        return checkpoint_root(self.run) / checkpoint_name(state["step"])

    def _agree(self, action: Callable[[], Any], everywhere: bool = True) -> str:
        """Why `action` failed on some rank (only rank 0 does it unless `everywhere`), the same on every rank; a
        collective.
        """
        error = ""
        if everywhere or is_rank_zero():
            try:
                # What rank 0 alone writes must not keep it from the collectives that the others are in.
                with compat_saving.held_errors() as held:
                    action()
                error = root_cause(held[0]) if held else ""
            except FAILURES as problem:  # (reported on every rank)
                log.error("checkpoint: this rank failed", exc_info=problem)
                error = root_cause(problem)
        return first_error(error, self.group, "saving a checkpoint")

    def _prepare(self, state: dict[str, Any]) -> None:
        remove_leftovers(self.run)
        partial_of(self._folder(state)).mkdir(parents=True)

    def _contents(self) -> dict[str, Any]:
        weights = sharded_weights(self.chunks)
        with compat.packed_buckets(self.optimizer):
            contents = {
                "model": weights,
                "optimizer": self.optimizer.sharded_state_dict(weights, metadata=compat.OPTIMIZER_FORMAT),
            }
        if self.average is not None:
            contents["ema"] = self.average.sharded(weights)
        if self.parts:
            contents["parts"] = part_contents(self.parts)
        return contents

    def _plan(self, state: dict[str, Any]) -> tuple[Any, str]:
        """(what is left to write and finish, why that failed)."""
        request: list[Any] = []
        error = self._agree(lambda: self._prepare(state), everywhere=False)
        if not error:
            error = self._agree(
                lambda: request.append(compat_saving.plan_save(self._contents(), str(partial_of(self._folder(state)))))
            )
        return (request[0] if request else None), error

    def _write(self, state: dict[str, Any]) -> str:
        """One attempt in the foreground; returns why it failed, the same on every rank."""
        request, error = self._plan(state)
        if not error and request is not None:
            error = self._agree(lambda: compat_saving.write(request))
        return self._publish(state, request, error)

    def _start(self, state: dict[str, Any]) -> str:
        """Hand a copy of everything to a background process."""
        request, error = self._plan(state)
        if not error:
            # Finishing is left to `_publish`.
            alone = compat_saving.tied(request)._replace(finalize_fns=[])
            error = self._agree(lambda: self.queue.schedule_async_request(alone))
        if error:
            self._discard(state, request)
        self.writing = None if error else (state, request)
        return error

    def _complete(self, wait: bool) -> bool:
        if self.writing is None or not self.queue.maybe_finalize_async_calls(blocking=wait):
            return False
        (state, request), self.writing = self.writing, None
        error = self._publish(state, request, "")
        if error:
            self._report(state, error, fatal=False)
        return bool(error)

    def _publish(self, state: dict[str, Any], request: Any, error: str) -> str:
        """Make a written checkpoint complete and drop old ones, or remove what is left of a failed one; returns the
        error that stands.
        """
        for finish in request.finalize_fns if request is not None else ():
            error = error or self._agree(finish)
        error = error or self._agree(lambda: self._complete_folder(state), everywhere=False)
        if error:
            self._discard(state, request)
        else:
            self.saved(self._folder(state))
        return error

    def _complete_folder(self, state: dict[str, Any]) -> None:
        final = self._folder(state)
        (partial_of(final) / "config.toml").write_text(config_to_toml(self.config), encoding="utf-8")
        seal(partial_of(final), state)
        publish(partial_of(final), final)
        try:
            prune_by(self.config, self.run)
        except OSError as problem:
            log.warning("%s: an older checkpoint could not be removed: %s", checkpoint_root(self.run), problem)

    def _discard(self, state: dict[str, Any], request: Any) -> None:
        if request is not None:
            compat_saving.abandon(request, self.queue)
            self.queue = compat_saving.background_calls() if self.queue is not None else None
        if is_rank_zero():
            shutil.rmtree(partial_of(self._folder(state)), ignore_errors=True)

    def _report(self, state: dict[str, Any], error: str, fatal: bool) -> None:
        text = from_rank_zero(lambda: self._describe(state, error), self.group, "saving a checkpoint")
        if fatal:
            raise RunError(f"{text}; start again to resume")
        if is_rank_zero():
            log.warning("%s; training goes on", text)

    def _describe(self, state: dict[str, Any], error: str) -> str:
        root, before = checkpoint_root(self.run), newest_folder(self.run)
        left = f"the newest complete one is {'still ' + before.name if before else 'none yet'}"
        try:
            free = (
                f"{shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / 2**20:.1f} "
                "MiB"
            )
        except OSError:
            free = "an unknown number of MiB"
        space = f"{free} of disk space are free and about {self._bytes_needed() / 2**20:.1f} are needed"
        return f"checkpoint of step {state['step']} could not be saved to {root}: {error}; {left}; {space}"

    def _bytes_needed(self) -> int:
        """Rough size of a checkpoint: fp32 main parameters, two moments and the average, and
        the parameters themselves.
        """
        states = 12 + 4 * (self.average is not None)
        return (
            sum(p.numel() * (states + p.element_size()) for chunk in self.chunks for p in chunk.parameters())
            * self.config.parallel.model_size
        )
