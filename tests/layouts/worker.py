"""One launch of `tools/compare_layouts.py`, under torchrun: `worker.py CASES.json FOLDER` trains a few steps in each
layout.

Rank 0 leaves ``<key>.json`` (losses, gradient norms, what the rows were like, megatron-core's release) and
``<key>.safetensors`` (the optimizer's float32 main parameters in released form, gathered over all ranks, and their
averages as ``ema.<name>``) per case.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from megatron_videogpt.platforms import Platform, activate
from tools.measuring.networks import spread

PLATFORM: Platform | None = None
"""Activated before anything of megatron-core is imported, once per process."""


def platform() -> Platform:
    """The CPU over gloo."""
    global PLATFORM
    if PLATFORM is None:
        PLATFORM = activate("cpu")
        torch.set_num_threads(1)
    return PLATFORM


@dataclass
class Session:
    """A model in training.  average: of its weights, or None; facts: int64 ``[4]``, see `row_facts`, of this rank."""

    config: Any
    chunks: list[Any]
    optimizer: Any
    average: Any
    objective: Any
    facts: Tensor


def start(config: Any, channels: int) -> Session:
    """Process groups, spread weights and optimizer of one layout."""
    device = platform()
    from megatron_videogpt.checkpoint.average import Average
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks
    from megatron_videogpt.train.optimizer import build_optimizer, wrap

    world.start(device, config.parallel)
    bare = build_chunks(config, channels, device)
    for chunk in bare:
        load_released(chunk, config.model, lambda entry: spread(entry, config, channels))
    chunks = wrap(config, bare)
    optimizer, decay = build_optimizer(config, chunks), config.optimizer.ema_decay
    average = Average(bare, optimizer, decay) if decay else None
    return Session(config, chunks, optimizer, average, build_objective(config), torch.zeros(4, dtype=torch.int64))


def row_facts(row: Any, shard: Any) -> Tensor:
    """int64 ``[4]``: shards, those without clean rows although their row has some, rows of single clips only, padding
    tokens.
    """
    real = sum(map(len, row.streams.values()))
    clean = len(row.streams["clean"]) > 0
    return torch.tensor([1, clean and not len(shard.streams["clean"]), not clean, row.length - real])


def rows_of(session: Session, samples: list[Any]) -> list[Any]:
    """This rank's shards of its data parallel share of a global batch."""
    from megatron.core import parallel_state

    config, micro = session.config, session.config.train.micro_batch_size
    rank, replicas = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    share = len(samples) // replicas
    mine = samples[rank * share : (rank + 1) * share]
    whole = [
        session.objective.prepare(mine[i : i + micro], config.parallel.row_multiple) for i in range(0, share, micro)
    ]
    shards = [
        row.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
        for row in whole
    ]
    session.facts += sum(row_facts(row, shard) for row, shard in zip(whole, shards))
    return shards


def step(session: Session, samples: list[Any]) -> tuple[float, float]:
    """One optimizer step on a global batch -> (loss, gradient norm), the same on every rank."""
    from megatron_videogpt.train.optimizer import set_learning_rate
    from megatron_videogpt.train.statistics import named_means, reduce_statistics
    from megatron_videogpt.train.step import train_step

    options = session.config.optimizer
    set_learning_rate(session.optimizer, options.lr)
    totals, norm, taken, _ = train_step(
        session.chunks, session.optimizer, session.objective, rows_of(session, samples), options.clip_grad
    )
    assert taken
    if session.average is not None:
        session.average.update(taken)
    return named_means(reduce_statistics(totals).numbers())["loss"], float(norm)


def main_parameters(session: Session) -> dict[Any, Tensor]:
    """This rank's parameters (shards of tensor parallelism) -> the optimizer's float32 main parameter of each, whole.

    The weights that the model computes with must be these, rounded to their precision: RuntimeError.
    """
    from megatron.core import parallel_state

    from megatron_videogpt.platforms import compat

    shards = {parameter: (main, start, end) for parameter, main, start, end in compat.main_shards(session.optimizer)}
    mains = {}
    for name, parameter in ((name, p) for chunk in session.chunks for name, p in chunk.module.named_parameters()):
        full = torch.zeros(parameter.numel())
        if parameter in shards:
            main, start, end = shards[parameter]
            full[start:end] = main.detach()
        torch.distributed.all_reduce(full, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        mains[parameter] = full.view(parameter.shape)
        if not torch.equal(mains[parameter].to(parameter.dtype), parameter.data):
            raise RuntimeError(f"{name} is not its main parameter, rounded to {parameter.dtype}")
    return mains


def gather(session: Session) -> dict[str, Tensor]:
    """Every main parameter under its released name, and its average as ``ema.<name>``: whole, float32,
    on every rank.
    """
    from megatron.core import parallel_state

    from megatron_videogpt.checkpoint.parts import sharded_weights
    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.train.optimizer import whole_parameters

    mine: dict[str, Tensor] = {}
    bare = [chunk.module for chunk in session.chunks]
    with whole_parameters(session.chunks):
        mains = main_parameters(session)
        for chunk in bare:
            mine.update(gather_released(chunk, session.config.model, lambda parameter: mains[parameter]))
        if session.average is not None:
            entries = session.average.sharded(sharded_weights(bare))
            averages = {
                id(p): entries[place][name].data
                for place, chunk in zip(entries, bare)
                for name, p in chunk.named_parameters()
            }
            for chunk in bare:
                full = gather_released(chunk, session.config.model, lambda parameter: averages[id(parameter)])
                mine.update({f"ema.{name}": value for name, value in full.items()})
    stages: list[dict[str, Tensor]] = [{} for _ in range(parallel_state.get_pipeline_model_parallel_world_size())]
    torch.distributed.all_gather_object(stages, mine, group=parallel_state.get_pipeline_model_parallel_group())
    return {name: value.float().contiguous().clone() for stage in stages for name, value in stage.items()}


def run_case(options: list[str], steps: int, channels: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`steps` steps in one layout -> (what goes into the JSON file, parameters)."""
    from megatron.core import __version__ as megatron

    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.platforms import world
    from tests.layouts.cases import BATCH, sample_of

    started = time.perf_counter()
    config = config_from_dict(parse_overrides(options))
    check_config(config, torch.distributed.get_world_size() if torch.distributed.is_initialized() else None)
    session = start(config, channels)
    before = gather(session)
    trace = [step(session, [sample_of(number, n, config.condition) for n in range(BATCH)]) for number in range(steps)]
    parameters = gather(session)
    torch.distributed.all_reduce(session.facts)
    world.leave_layout()
    losses, norms = zip(*trace)
    moved = {name: float((value - before[name]).double().norm()) for name, value in parameters.items()}
    result = {
        "losses": losses,
        "norms": norms,
        "moved": moved,
        "facts": session.facts.tolist(),
        "seconds": time.perf_counter() - started,
        "megatron": megatron,
    }
    return result, parameters


def main() -> None:
    """Entry point under torchrun."""
    from safetensors.torch import save_file

    platform()
    from tests.layouts.cases import CHANNELS, STEPS

    folder = Path(sys.argv[2])
    for key, options in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        result, parameters = run_case(options, STEPS, CHANNELS)
        if torch.distributed.get_rank() == 0:
            save_file(parameters, folder / f"{key}.safetensors")
            partial = folder / f"{key}.partial"
            partial.write_text(json.dumps(result), encoding="utf-8")
            partial.rename(folder / f"{key}.json")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
