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

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import layouts_worker as worker


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
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_videogpt.model.init import gather_released, load_released
    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import compat
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
        # Layers of a chunk, and those that recompute, are told by their own numbers.
        chunk.config.finalize_model_grads_func = compat.finalize_gradients
    if fault == "unmarked":
        unmarked(bare)
    chunks = [DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk) for chunk in bare]
    shard = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    replica, replicas = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    whole = [backbone.row_of(samples, tiny, config.parallel.row_multiple) for samples in backbone.samples_of(tiny)]
    mine = range(len(whole))[replica::replicas]
    rows = [whole[number].shard(*shard) for number in mine]
    if fault == "rank":
        rows = [replace(row, identity=row.identity + dist.get_rank()) for row in rows]
    found: list[Tensor] = []

    def forward_step(data: Iterator[Any], stage: Any) -> tuple[Tensor, Any]:
        row = next(data)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found.append(output.detach())
            total, _ = objective.loss(output, row)
            return total, torch.full((), row.count, dtype=torch.int), total.detach()

        return stage(row), loss

    compat.expect_lengths(chunks, {row.length for row in rows})
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(rows) for _ in chunks] if len(chunks) > 1 else iter(rows),
        model=chunks,
        num_microbatches=len(rows),
        seq_length=max(row.length for row in rows),
        micro_batch_size=1,
        forward_only=False,
    )
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
            everyone: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, found)
            worst = {key: max(one.get(key, 0.0) for one in everyone) for one in everyone for key in one}
            answers.setdefault(name, {})[option] = worst
        world.leave_layout()
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
