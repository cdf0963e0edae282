"""The factorised network in several layouts against its dense twin: `factorised_worker.py CASES.json OUTPUT.json`,
under torchrun.

A case is name -> (attention backend, parallel options).  Rank 0 leaves name -> parameter -> largest error of its
gradient on any rank, as a fraction of the largest value; ``output`` stands for the model's output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker
from tests.parallel.one_pass import one_pass, worst_of_all


def errors(backend: str, parallel: dict[str, Any]) -> dict[str, float]:
    """Of this rank."""
    device = worker.platform()
    from megatron.core import parallel_state

    from megatron_videogpt.model.forward import forward_row
    from megatron_videogpt.platforms import world
    from tests import factorised, factorised_dense

    config, weights = factorised.config_of(**parallel), factorised_dense.weights_of()
    world.start(device, config.parallel)
    bare = factorised.build(config, backend, weights)
    # Stages of a pipeline have no network for side inputs, so that the row brings what it computes.
    given = weights if config.parallel.pipeline > 1 else None
    whole = [
        factorised.row_of(samples, config.parallel.row_multiple, weights=given) for samples in factorised_dense.ROWS
    ]
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    rows = [row.shard(*context) for row in whole]

    one_pass(bare, rows, lambda output, row: factorised_dense.loss_of(output, row.target))
    outputs, gradients = factorised_dense.truth(factorised_dense.ROWS, weights)
    found = {
        name: factorised_dense.error(parameter.main_grad, factorised.cut(name, gradients[name], chunk))
        for chunk in bare
        for name, parameter in factorised.named(chunk)
    }
    joined = [forward_row(bare, row, factorised_dense.CHANNELS) for row in whole]
    found["output"] = max(map(factorised_dense.error, joined, outputs))
    world.leave_layout()
    return found


def main() -> None:
    """Entry point under torchrun."""
    worker.platform()
    answers = {}
    for name, (backend, parallel) in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        answers[name] = worst_of_all(errors(backend, parallel))
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
