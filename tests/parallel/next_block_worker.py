"""Trains next block prediction five steps in several layouts: `next_block_worker.py CASES.json OUTPUT.json`, under
torchrun.

A case is name -> {"options": [...], "save": run folder or null, "load": run folder or null}: it leaves a checkpoint
after `BEFORE` steps, or begins with one.  Rank 0 leaves name -> {"numbers": of every step, by metric; "weights": a
digest of all of them at the end}.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker

STEPS, BEFORE, BATCH = 5, 3, 4
LEVELS = (5, 4, 3)
GRIDS = ((2, 4, 4), (3, 4, 4))
"""Of the samples in turn: every row has videos of two lengths."""
BLANKS = ((1, 2), (3, 3))
"""(step, number) of samples that could not be read."""
SampleOf = Callable[[int, int, int], Any]
"""`sample(step, number, classes)`: a sample of a step."""


def nothing(session: worker.Session) -> dict[str, Any]:
    """Nothing more is asked of a trained model."""
    return {}


def sample_of(step: int, number: int, classes: int) -> Any:
    """A video of random codes, the same in every step so that they can be learned; of classes, some are dropped."""
    import torch

    from megatron_videogpt.codec.fsq import codes_of
    from megatron_videogpt.data.plans import Sample

    key = 1000 * step + number
    draws = torch.Generator().manual_seed(number)
    codes = codes_of(torch.randint(60, GRIDS[number % 2], generator=draws), LEVELS)
    scored = (step, number) not in BLANKS
    condition = torch.tensor([number % classes]) if classes and scored else None
    codes = codes if scored else torch.zeros_like(codes)
    return Sample(key, "", codes, None, (len(codes),), scored=scored, condition=condition, dropped=number % 3 == 2)


def rows_of(session: worker.Session, step: int, sample: SampleOf) -> list[Any]:
    """This rank's shards of its share of a step."""
    from megatron.core import parallel_state

    config, objective = session.config, session.objective
    rank, replicas = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    samples = [sample(step, number, len(config.condition.classes)) for number in range(BATCH)]
    mine, micro = samples[rank * BATCH // replicas : (rank + 1) * BATCH // replicas], config.train.micro_batch_size
    shard = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    rows = [objective.prepare(mine[i : i + micro], config.parallel.row_multiple) for i in range(0, len(mine), micro)]
    return [row.shard(*shard) for row in rows]


def take(session: worker.Session, step: int, sample: SampleOf) -> dict[str, float]:
    """One step -> its numbers, the same on every rank."""
    from megatron_videogpt.config.schedules import learning_rate
    from megatron_videogpt.train.optimizer import set_learning_rate
    from megatron_videogpt.train.statistics import named_means, reduce_statistics
    from megatron_videogpt.train.step import train_step

    options = session.config.optimizer
    set_learning_rate(session.optimizer, learning_rate(options, step + 2, 20))
    rows = rows_of(session, step, sample)
    done = train_step(session.chunks, session.optimizer, session.objective, rows, options.clip_grad)
    return {**named_means(reduce_statistics(done.totals).numbers()), "norm": float(done.norm)}


def digest_of(session: worker.Session) -> str:
    """Of the optimizer's parameters, whole, the same in every layout that has the same bits."""
    found = hashlib.sha256()
    for name, value in sorted(worker.gather(session).items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def run(
    options: list[str],
    save: str | None,
    load: str | None,
    sample: SampleOf,
    channels: int,
    after: Callable[[worker.Session], dict[str, Any]],
) -> dict[str, Any]:
    """All steps of one case, and what `after` finds of the model at the end."""
    from megatron_videogpt.checkpoint.load import load_checkpoint
    from megatron_videogpt.checkpoint.save import Saver
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.optimizer import whole_parameters
    from megatron_videogpt.train.run import State

    config = config_from_dict(parse_overrides([*options, *([f"train.output={save}"] if save else [])]))
    check_config(config, world.world_size())
    session = worker.start(config, channels)
    bare = [chunk.module for chunk in session.chunks]
    if load:
        with whole_parameters(session.chunks):
            load_checkpoint(find_checkpoint(Path(load)), bare, session.optimizer, None)
    found = [take(session, step, sample) for step in range(BEFORE if load else 0, BEFORE if save else STEPS)]
    if save:
        state = State(step=BEFORE, consumed=BEFORE * BATCH, updates=BEFORE)
        with whole_parameters(session.chunks):
            assert Saver(config, bare, session.optimizer, None, "codec").save(asdict(state), must=True) is not None
        found += [take(session, step, sample) for step in range(BEFORE, STEPS)]
    weights = digest_of(session)
    more = after(session)
    world.leave_layout()
    return {"numbers": found, "weights": weights, **more}


def main(
    sample: SampleOf = sample_of,
    channels: int = len(LEVELS),
    after: Callable[[worker.Session], dict[str, Any]] = nothing,
) -> None:
    """Entry point under torchrun: with samples of so many channels."""
    worker.platform()
    import torch

    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = {
        name: run(case["options"], case["save"], case["load"], sample, channels, after) for name, case in cases.items()
    }
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
