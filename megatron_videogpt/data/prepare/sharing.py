"""What `data encode` and `data encode-text` do alike: processes that share out the work, their folder and bar."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

from ... import launch
from ...config.paths import obstacle
from ...errors import UserError, unusable
from ...signals import joining

AFTER = "the same command goes on after the last finished shards"
"""What to do after a signal."""

POLL = 0.05
"""Seconds between two looks for the other processes."""


def share(encode: Callable[[argparse.Namespace, int, int], str], args: argparse.Namespace) -> None:
    """`encode(args, rank, world)` on every process, and the line that it says printed.

    Raises:
        UserError: in one line, where that cannot be done; what `encode` raises.
    """
    world, rank = launch.world_size(), int(os.environ.get("RANK", "0"))
    if world > 1:
        with joining():
            # Processes wait for the slowest one at the end, perhaps for days.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    line = encode(args, rank, world)
    if line:
        print(line)
    if world > 1:
        torch.distributed.destroy_process_group()


def make_folder(output: Path, named: str) -> None:
    """The folder, or UserError in one line that names it so."""
    if why := obstacle(output):
        raise UserError(f"{named}: {why}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(named, error) from error


def bar(total: int, unit: str, rank: int, world: int) -> tqdm:
    """Of rank 0's share of the work; without a terminal there is none."""
    processes = f" (1 of {world} processes)" if world > 1 else ""
    return tqdm(
        total=total, unit=f" {unit}", desc=f"encoding{processes}", smoothing=0.05, disable=True if rank else None
    )


def summed(counts: list[int], world: int) -> list[int]:
    """Counts of all processes together, on each of them; a collective."""
    total = torch.tensor(counts)
    if world > 1:
        work = torch.distributed.all_reduce(total, async_op=True)
        # A signal would not be heard inside its wait.
        while not work.is_completed():
            time.sleep(POLL)
        work.wait()
    return total.tolist()
