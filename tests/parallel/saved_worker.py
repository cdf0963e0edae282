"""Bytes that one decoder layer keeps for its backward pass on every rank, counted by autograd itself: `saved_worker.py
LAYOUTS.json OUTPUT.json`.

A model of two layers saves one layer more than a model of one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

CHANNELS = 4


def saved_bytes(values: dict[str, Any], platform: Any) -> tuple[float, int]:
    """(bytes of all storages that autograd holds after a forward pass, parameters left out; tokens of
    the whole row).
    """
    from megatron.core import parallel_state

    from megatron_videogpt.condition.folder import text_width
    from megatron_videogpt.config.load import config_from_dict
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks

    config = config_from_dict(values)
    world.start(platform, config.parallel)
    (model,) = build_chunks(config, CHANNELS, platform)
    objective = build_objective(config)
    condition = config.condition
    words = normal(1, "words", (condition.text_tokens, text_width(condition))) if condition.kind == "text" else None
    latents = normal(1, "latents", (4, CHANNELS, 8, 8))
    sample = Sample(key=1, name="1", mean=latents, logvar=None, clips=(1, 2, 1), condition=words)
    row = objective.prepare([sample], config.parallel.row_multiple)
    part = row.shard(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    held: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        objective.score(model(part), part)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Sizes are read after the forward pass, because recomputed outputs are emptied only then; what belongs to the row
    # is not the layer's.
    outside = parameters | {part.intervals.untyped_storage().data_ptr()}
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in held}
    total = sum(storage.nbytes() for storage in storages.values() if storage.data_ptr() not in outside)
    world.leave_layout()
    return total, row.length


def main() -> None:
    """Entry point under torchrun."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    torch.set_num_threads(1)
    answers = {}
    for name, values in json.loads(Path(sys.argv[1]).read_text()).items():
        (one, tokens), (two, _) = (
            saved_bytes({**values, "model": {**values["model"], "num_layers": layers}}, platform) for layers in (1, 2)
        )
        answers[name] = {"bytes": two - one, "tokens": tokens}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
