"""Whether a step may be taken, whether somebody asked to stop, and which rank is slow: all without holding
up the step.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from ..config.schema import Config, OptimizerConfig
from ..platforms import Platform
from .records import Appended, Records

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
"""File in the run's folder with every step that was not taken."""

REMEMBERED = 50
"""Gradient norms of taken steps that a spike is measured against, and how few are too few: half of them."""


class NormGate:
    """Which gradient norm a step may have, by those of the steps before; all ranks share them, and so all decide alike.

    norms: of the last taken steps, oldest first; skipped: steps skipped in a row.  Both belong to the run's state.
    """

    def __init__(self, options: OptimizerConfig, norms: list[float], skipped: int) -> None:
        self.options, self.norms, self.skipped = options, list(norms), skipped

    @property
    def limit(self) -> float:
        """Largest gradient norm of a step that is taken; one that is not finite never is."""
        if not self.options.spike_factor or len(self.norms) < REMEMBERED // 2:
            return math.inf
        return self.options.spike_factor * statistics.median(self.norms)

    def record(self, norm: float, taken: bool, scored: bool = True) -> None:
        """Remember a step.  scored: whether anything in it was; where nothing was, it says nothing about the model's
        health, and is passed over.
        """
        if taken:
            self.norms = [*self.norms, norm][-REMEMBERED:]
        if scored:
            self.skipped = 0 if taken else self.skipped + 1

    def too_many(self) -> bool:
        """Whether the run must stop."""
        return self.skipped >= self.options.max_skipped


def record_skipped(
    run: Path, step: int, norm: float, limit: float, samples: list[dict[str, Any]], records: Records, part: str = ""
) -> None:
    """Append a skipped step to ``skipped.jsonl`` of the run: step, gradient norm (null when not finite), reason, name
    and key of every sample.

    samples: those that were scored; a step without any was skipped for that.  part: whose step, where it is not the
    objective's first network.
    """
    names = ", ".join(sorted({sample["name"] for sample in samples}))
    if not samples:
        reason = "none of its samples could be read"
    elif math.isfinite(norm):
        reason = f"the gradient norm {norm:g} is above the limit of {limit:g}"
    else:
        reason = f"the gradient norm is not finite ({norm})"
    of = f" of {part}" if part else ""
    log.warning("step %d%s skipped on all ranks: %s%s", step, of, reason, f"; its samples: {names}" if names else "")
    line = {
        **({"part": part} if part else {}),
        "step": step,
        "grad_norm": norm if math.isfinite(norm) else None,
        "reason": reason,
        "samples": samples,
    }
    file = Appended(run / SKIPPED, SKIPPED, records, "line")
    file.add(step, f"{json.dumps(line)}\n".encode())
    file.close()


class AnyRank:
    """What ranks wish for, such as to stop, one step later: the answer travels while the next step works.

    group: of all ranks, on CPU tensors, so that no device waits.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.pending: tuple[Any, torch.Tensor] | None = None

    def ask(self, flag: int) -> int:
        """Tell this rank's wish, 0 for none; returns the largest of all ranks at the call before, the same on all."""
        answer = self.close()
        value = torch.tensor(int(flag))
        self.pending = (
            torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX, group=self.group, async_op=True),
            value,
        )
        return answer

    def close(self) -> int:
        """The answer to the last call; afterwards nothing is on its way."""
        if self.pending is None:
            return 0
        work, value = self.pending
        work.wait()
        self.pending = None
        return int(value.item())


class RankTimes:
    """Every rank's own seconds per step and the seconds it waited for data, gathered in the background every
    `logging.slowest_every` steps.

    Ranks wait for each other within a step, so that the step takes equally long on all of them; `Platform.own_seconds`
    is what a rank did itself.
    """

    def __init__(self, config: Config, platform: Platform, group: Any) -> None:
        self.every, self.own, self.group = config.logging.slowest_every, platform.own_seconds, group
        # Asking may be a piece of work for the device.
        self.mark, self.waited, self.steps = self.own() if self.every else 0.0, 0.0, 0
        self.pending: tuple[Any, list[torch.Tensor]] | None = None
        self.found: dict[str, float] = {}

    def add(self, step: int, waited: float) -> None:
        """After each step, with its wait for data; once per interval the ranks' times go on their way and the ones
        before are read.
        """
        self.waited, self.steps = self.waited + waited, self.steps + 1
        if not self.every or step % self.every:
            return
        self._read()
        now = self.own()
        mine = torch.tensor([(now - self.mark) / self.steps, self.waited / self.steps])
        parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        self.pending = (torch.distributed.all_gather(parts, mine, group=self.group, async_op=True), parts)
        self.mark, self.waited, self.steps = now, 0.0, 0

    def _read(self) -> None:
        if self.pending is None:
            return
        work, parts = self.pending
        work.wait()
        self.pending = None
        times = torch.stack(parts)
        slowest, median = int(times.sum(dim=1).argmax()), times.sum(dim=1).median()
        log.info(
            "seconds per step by rank (own + waiting for data): %s",
            " ".join(f"{n}:{own:.3f}+{wait:.3f}" for n, (own, wait) in enumerate(times.tolist())),
        )
        self.found = {
            "slowest_rank": slowest,
            "slowest_rank_time": float(times[slowest].sum()),
            "median_rank_time": float(median),
        }

    def report(self) -> dict[str, float]:
        """Who was slowest in the last interval that was read, once; else nothing."""
        found, self.found = self.found, {}
        return found

    def close(self) -> None:
        """Nothing is on its way afterwards."""
        self._read()
