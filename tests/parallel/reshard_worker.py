"""Saves and loads checkpoints in several layouts: under torchrun `reshard_worker.py run TASKS.json`, in one process
`reshard_worker.py compare PAIRS.json OUTPUT.json`.

A task is {"options": [...], "output": run folder, "load": run folder or null}.  Without `load` it trains `BEFORE` steps
from spread weights and saves; with it, it loads that checkpoint and saves it again as it is.  Either way it then trains
`AFTER` more steps and leaves their losses in ``losses.json``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker

BEFORE, AFTER = 3, 3
CODEC = "0123456789abcdef"


def run(task: dict[str, Any]) -> None:
    """One task, in the layout of its options."""
    import torch

    from megatron_videogpt.checkpoint.load import load_checkpoint
    from megatron_videogpt.checkpoint.save import Saver
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.optimizer import whole_parameters
    from megatron_videogpt.train.run import State
    from tests.layouts.cases import BATCH, CHANNELS, sample_of

    config = config_from_dict(parse_overrides([*task["options"], f"train.output={task['output']}", "train.seed=7"]))
    session = worker.start(config, CHANNELS)
    bare = [chunk.module for chunk in session.chunks]

    def train(first: int, count: int) -> list[float]:
        return [
            worker.step(session, [sample_of(number, n, config.condition) for n in range(BATCH)])[0]
            for number in range(first, first + count)
        ]

    if task["load"]:
        with whole_parameters(session.chunks):
            read = load_checkpoint(find_checkpoint(Path(task["load"])), bare, session.optimizer, session.average)
        state = State(**{f.name: read[f.name] for f in fields(State)})
    else:
        train(0, BEFORE)
        state = State(
            step=BEFORE,
            consumed=BEFORE * BATCH,
            updates=BEFORE,
            pending=[0.5 * n for n in range(12)],
            norms=[3.25, 1.5, 2.0],
            skipped=0,
        )
    with whole_parameters(session.chunks):
        assert Saver(config, bare, session.optimizer, session.average, CODEC).save(asdict(state), must=True) is not None
    losses = train(BEFORE, AFTER)
    if torch.distributed.get_rank() == 0:
        (Path(task["output"]) / "losses.json").write_text(json.dumps(losses))
    world.leave_layout()


def kind(key: str) -> str:
    """Weights, or what the optimizer (``param``: float32 main parameters) and the average keep of each, by the tensor's
    key in the checkpoint.
    """
    if key.startswith("optimizer.state."):
        return key.split(".")[2]
    return "ema" if key.startswith("ema.") else "weight"


def contents(folder: Path) -> dict[str, Any]:
    """Every tensor of a run's checkpoint, whole, by key; no layout is involved."""
    import torch
    from megatron.core import dist_checkpointing

    from megatron_videogpt.checkpoint.saved import find_checkpoint

    loaded = dist_checkpointing.load_plain_tensors(str(find_checkpoint(folder).path))
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How the tensors of two checkpoints differ, and what they are."""
    import torch

    a, b = contents(first), contents(second)
    kinds: dict[str, int] = {}
    for key in a:
        kinds[kind(key)] = kinds.get(kind(key), 0) + 1
    both = a.keys() & b.keys()
    return {
        "only in one": sorted(a.keys() ^ b.keys()),
        "unequal": sorted(key for key in both if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])),
        "zero": sorted(key for key in a if not a[key].any()),
        "kinds": kinds,
        "dtypes": {name: sorted({str(a[key].dtype) for key in a if kind(key) == name}) for name in kinds},
    }


def main() -> None:
    """Entry point."""
    platform = worker.platform()
    import torch

    tasks = json.loads(Path(sys.argv[2]).read_text())
    if sys.argv[1] == "run":
        for task in tasks:
            run(task)
        torch.distributed.destroy_process_group()
        return
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.platforms import world

    world.start(platform, ParallelConfig())
    results = [compare(Path(first), Path(second)) for first, second in tasks]
    Path(sys.argv[3]).write_text(json.dumps(results))
    world.stop()


if __name__ == "__main__":
    main()
