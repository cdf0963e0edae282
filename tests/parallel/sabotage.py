"""The trainer's own command line with one thing broken: `sabotage.py WHAT train FILE.toml ...` (see `BREAK`)."""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import Any

import torch

from megatron_videogpt.errors import UserError


def save_fails(times: int) -> None:
    """The first `times` attempts to write a checkpoint fail on rank 0 as on a full disk; the other ranks go through."""
    from megatron.core import dist_checkpointing

    real, left = dist_checkpointing.save, [times]

    @functools.wraps(real)  # the trainer asks for its options
    def save(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, "No space left on device (sabotage)")
        return real(*arguments, **options)

    dist_checkpointing.save = save


def loss_breaks(factor: float, *steps: int) -> None:
    """On the last rank the loss of these steps (from 1) is multiplied by `factor`."""
    from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
    from megatron_videogpt.train import in_flight

    real_loss, real_step, now = NextClipDiffusion.loss, in_flight.train_step, [0]

    def loss(self: Any, output: Any, row: Any) -> Any:
        total, per_frame = real_loss(self, output, row)
        last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        return (total * factor if last and now[0] in steps else total), per_frame

    def step(*arguments: Any) -> Any:
        now[0] += 1
        return real_step(*arguments)

    NextClipDiffusion.loss, in_flight.train_step = loss, step  # type: ignore[method-assign]


def slow_rank(rank: int, seconds: float) -> None:
    """One rank works longer to prepare each micro-batch."""
    from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion

    real = NextClipDiffusion.prepare

    def prepare(self: Any, *arguments: Any) -> Any:
        start = time.process_time()
        while int(os.environ["RANK"]) == rank and time.process_time() - start < seconds:
            pass
        return real(self, *arguments)

    NextClipDiffusion.prepare = prepare  # type: ignore[method-assign]


def storage_fails(rank: int, step: int, error: Exception, *broken: int) -> None:
    """One rank cannot read the data of a step (from 1), after the loss was no number in the `broken` ones."""
    from megatron_videogpt.data.loader import Loader

    real, now = Loader.__next__, [0]

    def read(self: Any) -> Any:
        now[0] += 1
        if now[0] == step and int(os.environ.get("RANK", "0")) == rank:
            raise error
        return real(self)

    Loader.__next__ = read  # type: ignore[method-assign]
    loss_breaks(float("nan"), *broken)


def validation_fails(rank: int, error: Exception) -> None:
    """One rank cannot read its validation samples."""
    from megatron_videogpt.data import loader

    real = loader.Reading.finish

    def finish(self: Any, plan: Any) -> Any:
        if self.keep_pixels and int(os.environ.get("RANK", "0")) == rank:
            raise error
        return real(self, plan)

    loader.Reading.finish = finish  # type: ignore[method-assign]


def encoding_fails(rank: int) -> None:
    """One rank's memory does not suffice for its part of the encoding of the second step."""
    from megatron_videogpt.train import sharing

    real, calls = sharing.encode_calls, [0]

    def encode(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2 and int(os.environ.get("RANK", "0")) == rank:
            raise torch.OutOfMemoryError("device out of memory (sabotage)")
        return real(*arguments)

    sharing.encode_calls = encode


BREAK = {
    "unreadable_after_a_skipped_step": lambda: storage_fails(1, 4, UserError("the disk of node 7 is gone"), 3),
    "fault_after_a_skipped_step": lambda: storage_fails(1, 4, KeyError("frames"), 3),
    "fault_in_validation": lambda: validation_fails(1, ValueError("not the user's")),
    "encoding_fails": lambda: encoding_fails(1),
    "save_fails_once": lambda: save_fails(1),
    "save_fails_twice": lambda: save_fails(2),
    "save_fails": lambda: save_fails(10**6),
    "nan_in_steps_3_and_4": lambda: loss_breaks(float("nan"), 3, 4),
    "nan_from_step_3": lambda: loss_breaks(float("nan"), *range(3, 100)),
    "spike_in_step_30": lambda: loss_breaks(1e4, 30),
    "rank_2_is_slow": lambda: slow_rank(2, 0.05),
}


if __name__ == "__main__":
    from megatron_videogpt.platforms import activate

    activate("cpu")
    BREAK[sys.argv[1]]()
    from megatron_videogpt.__main__ import main

    sys.exit(main(sys.argv[2:]))
