"""Calls and bytes that rank 0 really sends in one optimizer step, by kind: `traffic_worker.py LAYOUTS.json
OUTPUT.json`.

Counted by wrapping torch.distributed's functions wherever they have been imported; calls of fewer than 2,000 numbers
(norms, counts) are left out.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CHANNELS, SMALL, ROWS = 4, 2000, 2
counted: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
used: dict[str, bool] = {}
"""Names of the groups of several ranks that anything went through; whether messages from rank to rank did."""


def replace(original: Any, wrapped: Any) -> None:
    """In torch.distributed and in every module that has taken `original` from there; what torch calls itself stays."""
    for place, module in list(sys.modules.items()):
        if place == "torch.distributed" or not place.startswith("torch"):
            for name in [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is original]:
                setattr(module, name, wrapped)


def note(group: Any, pairs: bool = False) -> None:
    group = group or dist.group.WORLD
    if group.size() > 1:
        used[group.group_name] = used.get(group.group_name, False) or pairs


def count(name: str, kind: str, which: int, factor: float) -> None:
    """Wrap a collective whose argument number `which` is the whole tensor; a rank of n sends ``factor * (n-1)/n`` of
    it.
    """
    original = getattr(dist, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        group = kwargs.get("group") or next((x for x in args if isinstance(x, dist.ProcessGroup)), None)
        whole, size = args[which], dist.get_world_size(group)
        note(group)
        if size > 1 and whole.numel() >= SMALL:
            counted[kind][0] += 1
            counted[kind][1] += factor * whole.nbytes * (size - 1) / size
        return original(*args, **kwargs)

    replace(original, wrapped)


def count_sends() -> None:
    """Point to point: one call sends the whole tensor; what is received may come through another group."""
    original, receive = dist.isend, dist.irecv

    def wrapped(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        note(kwargs["group"], pairs=True)
        if tensor.numel() >= SMALL:
            counted["send"][0] += 1
            counted["send"][1] += tensor.nbytes
        return original(tensor, *args, **kwargs)

    def received(*args: Any, **kwargs: Any) -> Any:
        note(kwargs["group"], pairs=True)
        return receive(*args, **kwargs)

    # Batched operations compare with the module's own name.
    replace(original, wrapped)
    replace(receive, received)
    dist.distributed_c10d.isend, dist.distributed_c10d.irecv = wrapped, received


def step(values: dict[str, Any], platform: Any) -> tuple[dict[str, list[float]], int, list[bool]]:
    """({kind: [calls, bytes]} of the second step, tokens of a row, of each group whether it carried messages)."""
    from megatron.core import parallel_state

    from megatron_videogpt.config.load import config_from_dict
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks
    from megatron_videogpt.train.optimizer import build_optimizer, wrap
    from megatron_videogpt.train.step import train_step

    config = config_from_dict(values)
    world.start(platform, config.parallel)
    objective, chunks = build_objective(config), wrap(config, build_chunks(config, CHANNELS, platform))
    optimizer = build_optimizer(config, chunks)
    sample = Sample(key=1, name="1", mean=normal(1, "latents", (4, CHANNELS, 8, 8)), logvar=None, clips=(1, 2, 1))
    row = objective.prepare([sample], config.parallel.row_multiple)
    part = row.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    for _ in range(2):
        counted.clear()
        used.clear()
        train_step(chunks, optimizer, objective, [part] * ROWS)
    world.leave_layout()
    return dict(counted), row.length, list(used.values())


def main() -> None:
    """Entry point under torchrun."""
    count("all_reduce", "all-reduce", 0, 2)
    count("all_gather_into_tensor", "all-gather", 0, 1)
    count("reduce_scatter_tensor", "reduce-scatter", 1, 1)
    count("all_to_all_single", "all-to-all", 1, 1)
    count_sends()
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    torch.set_num_threads(1)
    answers = {}
    for name, values in json.loads(Path(sys.argv[1]).read_text()).items():
        calls, tokens, groups = step(values, platform)
        answers[name] = {"calls": calls, "tokens": tokens, "groups": groups}
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
