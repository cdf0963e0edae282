"""Two replicas that see different things, and a whole training run: `run_worker.py CONFIG FOLDER` leaves
``FOLDER/rank<n>.json``.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_videogpt.platforms import activate

PLATFORM = activate("cpu")
from megatron_videogpt.config.load import load_config  # noqa: E402
from megatron_videogpt.platforms import world  # noqa: E402
from megatron_videogpt.train import in_flight, run, trainer  # noqa: E402
from tests.waits import Doubles  # noqa: E402

MEMORY = 10**17 + 1
"""Bytes: no float64 holds it, and a float32 far less."""
HOST_ONLY = (
    "model/patches.py",
    "model/rope.py",
    "sample/evaluate.py",
    "objective/noise.py",
    "data/",
    "codec/",
    "attention/",
)
"""Where float64 is computed with on the host, on purpose: tables that are rounded before they go to a device, and
results that have come from one (the check of an attention backend at start, against `reference`).
"""


def uneven_steps(folder: Path) -> dict[str, Any]:
    """Log lines of rank 0's and rank 1's steps: of one row and three rows, then of none but rank 0's, then of none at
    all.
    """
    from tests.session import Session
    from tests.unit.test_in_flight import Codec, samples

    world.start(PLATFORM, load_config(sys.argv[1]).parallel)
    rank, session = dist.get_rank(), Session()
    config = replace(
        session.config,
        train=replace(session.config.train, steps=4, output=str(folder)),
        logging=replace(session.config.logging, every=1),
    )
    platform = replace(PLATFORM, memory_peak=lambda: MEMORY + rank)
    parts = session.objective, session.networks, session.average
    tested = run.Run(config, platform, Codec(), *parts, None, world.control_group(), lambda *_, **__: None, run.State())  # type: ignore[arg-type]
    lines: list[dict[str, float]] = []
    steps = in_flight.InFlightSteps(tested, lambda _, line: lines.append(line))

    def data() -> Iterator[Any]:
        good, gone = samples(), samples(outage=tuple(range(1, 9)))
        one, two = next(good), next(good)
        time.sleep(0.1 * rank)
        yield replace(one, rows=(one.rows + two.rows + two.rows) if rank else one.rows)
        yield next(gone) if rank else next(good)
        yield next(gone)
        yield next(good)

    given, before = data(), []
    for _ in range(4):
        steps.launch(given)
        steps.complete()
        # This rank's shards, which are up to date while the weights are still being gathered.
        before.append([float(p.detach().double().sum()) for p in session.parameters()])
    state = {"updates": tested.state.updates, "skipped": tested.state.skipped, "norms": tested.state.norms}
    world.leave_layout()
    return {"lines": lines, "sums": before, **state}


def whole_run(folder: Path) -> dict[str, Any]:
    """What of a run, validation and checkpoints included, is float64, and after how many launched steps Python
    collected garbage.
    """
    overrides = [
        "parallel.recompute=auto",
        "optimizer.ema_decay=0.9",
        "optimizer.spike_factor=100.0",
        "logging.slowest_every=2",
        "train.steps=10",
    ]
    overrides += [
        "train.gc_every=4",
        "checkpoint.every=0",
        "eval.every=5",
        "eval.samples=2",
        "eval.final_scenes=2",
        "logging.every=2",
        f"train.output={folder / 'run'}",
    ]
    launched, collected, real = [0], [], in_flight.InFlightSteps.launch

    def launch(self: Any, data: Any) -> bool:
        logged = real(self, data)
        launched[0] += 1
        return logged

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and 0 < launched[0] < 10:
            collected.append(launched[0])

    in_flight.InFlightSteps.launch = launch  # type: ignore[method-assign]
    gc.callbacks.append(note)
    with Doubles(HOST_ONLY) as watch:
        trainer.train(load_config(sys.argv[1], overrides))
    gc.callbacks.remove(note)
    return {"doubles": sorted(set(watch.found)), "collectives": watch.collectives, "collected": collected}


def main() -> None:
    """Entry point under torchrun."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    result = {**uneven_steps(folder), **whole_run(folder)}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
