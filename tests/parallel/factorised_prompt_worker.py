"""The factorised network of Ca2-VDM in several layouts against its dense twin, and against recorded passes:
`factorised_prompt_worker.py CASES.json GOLDEN OUTPUT.json`, under torchrun.

A case is name -> (variant, attention backend, parallel options).  Rank 0 leaves name -> published key -> largest error
of its gradient on any rank, as a fraction of the largest value; ``output`` stands for the network's output and, in the
cases whose name is a layout alone, ``recorded`` for recorded passes, losses and sampling, as a fraction of their limits
by 1e-5.
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


def errors(name: str, backend: str, parallel: dict[str, Any], golden: Path | None) -> dict[str, float]:
    """Of this rank."""
    device = worker.platform()
    import torch
    from megatron.core import parallel_state

    from megatron_videogpt.config.schema import Config, ParallelConfig, TrainConfig
    from megatron_videogpt.model.forward import forward_row
    from megatron_videogpt.model.init import gather_released, load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of
    from megatron_videogpt.objective.frame_prompt.factorised.rows import assemble
    from megatron_videogpt.objective.recorded import Report
    from megatron_videogpt.platforms import world
    from tests import factorised_prompt as small
    from tests.factorised_dense import error
    from tools.parity import vidgpt_factorised

    variant = small.VARIANTS[name]
    weights, videos = small.weights_of(variant), small.rows_of(variant)
    config = Config(model=small.MODEL, train=TrainConfig(precision="fp32"), parallel=ParallelConfig(**parallel))
    world.start(device, config.parallel)

    def build(config: Config, ends: Any, channels: int) -> Any:
        return VideoGPT(config, channels, device, backend, ends)

    network = build(config, ends_of(variant), small.CHANNELS)
    load_released(network, config.model, lambda entry: weights[entry.hf])
    whole = [assemble(row, config.parallel.row_multiple, variant, 2) for row in videos]
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    one_pass([network], [row.shard(*context) for row in whole], lambda output, row: small.loss_of(output, row.target))
    outputs, gradients = small.truth(videos, variant, weights)
    gathered = gather_released(network, config.model, lambda parameter: parameter.main_grad)
    found = {key: error(gathered[key], wanted) for key, wanted in gradients.items() if wanted.any()}
    joined = [forward_row([network], row, 0) for row in whole]
    split = [torch.cat(output.unflatten(1, (4, -1)).chunk(2, dim=2), 2).flatten(1) for output in joined]
    found["output"] = max(map(error, split, outputs))
    if golden is not None:
        report = Report(vidgpt_factorised.limits())
        parity.check_folder(golden, config.parallel, build, report)
        vidgpt_factorised.check_sampling(golden, config.parallel, build, report)
        assert "sampler chains" in report.compared
        found["recorded"] = (
            max(
                error / report.limits[quantity] if report.limits[quantity] else error
                for quantity, (error, _) in report.worst.items()
            )
            / 1e5
        )
    world.leave_layout()
    return found


def main() -> None:
    """Entry point under torchrun."""
    worker.platform()
    answers = {}
    for name, (variant, backend, parallel) in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        golden = Path(sys.argv[2]) if name in ("TP2", "CP2") else None
        answers[name] = worst_of_all(errors(variant, backend, parallel, golden))
    if dist.get_rank() == 0:
        Path(sys.argv[3]).write_text(json.dumps(answers), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
