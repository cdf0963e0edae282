"""The options of the backbone in several layouts against the dense twin: `backbone_worker.py CASES.json OUTPUT.json`,
under torchrun.

A case is name -> (parallel options, names of `tests.backbone.OPTIONS`, a planted fault or ""). Rank 0 leaves name ->
options -> released name -> largest error of the gradient on any rank, as a fraction of the largest value; ``output``
stands for the model's output while it trains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker
from tests.parallel.one_pass import one_pass, worst_of_all


@contextmanager
def without_biases() -> Iterator[None]:
    """Attention drops the bias that its output projection leaves to be added."""
    from megatron_videogpt.model import self_attention

    real = self_attention.with_bias
    self_attention.with_bias = lambda output: output[0]
    try:
        yield
    finally:
        self_attention.with_bias = real


def unmarked(chunks: list[Any]) -> None:
    """The norms' biases lose their mark."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if name.endswith("layernorm.bias"):
                parameter.sequence_parallel = False


def errors(options: str, parallel: dict[str, Any], fault: str) -> dict[str, float]:
    """Of this rank, whose process groups are there."""
    from megatron.core import parallel_state

    from megatron_videogpt.model.init import gather_released, load_released
    from megatron_videogpt.objective.build import build_network, build_objective
    from tests import backbone

    tiny = backbone.tiny_of(options)
    config, (weights, outputs, gradients) = backbone.config_of(tiny, **parallel), backbone.truth(options)
    objective, device = build_objective(config), worker.platform()
    bare = [
        build_network(config, tiny.channels, device, "ranged", chunk)
        for chunk in range(config.parallel.virtual_pipeline)
    ]
    for chunk in bare:
        load_released(chunk, config.model, lambda entry: weights[entry.hf])
    if fault == "unmarked":
        unmarked(bare)
    shard = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    replica, replicas = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    whole = [backbone.row_of(samples, tiny, config.parallel.row_multiple) for samples in backbone.samples_of(tiny)]
    mine = range(len(whole))[replica::replicas]
    rows = [whole[number].shard(*shard) for number in mine]
    if fault == "rank":
        rows = [replace(row, identity=row.identity + dist.get_rank()) for row in rows]
    found: list[Tensor] = []

    def loss_of(output: Tensor, row: Any) -> Tensor:
        found.append(output.detach())
        return objective.loss(output, row)[0]

    one_pass(bare, rows, loss_of)
    errors: dict[str, float] = {}
    for chunk in bare:
        for name, gradient in gather_released(chunk, config.model, lambda parameter: parameter.main_grad).items():
            errors[name] = backbone.error(gradient, gradients[name])
    for number, output in zip(mine, found):
        row = whole[number]
        here = row.scored_rows // (row.length // shard[1]) == shard[0]
        errors["output"] = max(errors.get("output", 0.0), backbone.error(output, outputs[number][here]))
    return errors


def main() -> None:
    """Entry point under torchrun."""
    device = worker.platform()
    from megatron_videogpt.platforms import world
    from tests import backbone

    answers: dict[str, dict[str, dict[str, float]]] = {}
    for name, (parallel, options, fault) in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        world.start(device, backbone.config_of(backbone.tiny_of(options[0]), **parallel).parallel)
        for option in options:
            if fault == "bias":
                with without_biases():
                    found = errors(option, parallel, fault)
            else:
                found = errors(option, parallel, fault)
            answers.setdefault(name, {})[option] = worst_of_all(found)
        world.leave_layout()
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
