"""Layers of Transformer Engine, or NVIDIA Apex's accumulation of gradients, over stand-ins, against doing without, one
after the other: `engine_worker.py WHAT OUTPUT.json LAYOUTS` under torchrun, or alone; what: engine, apex or both;
layouts: JSON, name -> options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "nvidia"), str(REPOSITORY)]
from tests.layouts import worker  # noqa: E402

PLATFORM = worker.platform()
import torch  # noqa: E402

from megatron_videogpt.model import accumulation, layers  # noqa: E402

STEPS = 3


def trained(options: list[str], what: str) -> dict[str, Any]:
    """What a few steps in a layout give: losses, norms of gradients, the first step's gradients of this rank, main
    parameters; names and shapes; classes; calls of Apex's kernel.  what: as on an NVIDIA GPU that has it.
    """
    import fused_weight_gradient_mlp_cuda as extension

    from megatron_videogpt.platforms import compat

    engine, apex = what in ("engine", "both"), what in ("apex", "both")
    layers.has_transformer_engine = lambda platform: engine
    accumulation.obstacle = lambda platform: ""
    options = [*options, f"parallel.gradient_accumulation_fusion={'on' if apex else 'off'}"]
    extension.CALLS[0] = 0
    from megatron_videogpt.checkpoint.parts import sharded_weights
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.platforms import world
    from tests.layouts.cases import BATCH, CHANNELS, COMMON, sample_of

    config = config_from_dict(parse_overrides([*COMMON.split(), *options]))
    session = worker.start(config, CHANNELS)
    bare = [chunk.module for chunk in session.chunks]
    found: dict[str, Any] = {
        "names": [(name, list(p.shape), p.dtype) for chunk in bare for name, p in chunk.named_parameters()],
        "marks": {
            (number, name): bool(getattr(p, "sequence_parallel", False))
            for number, chunk in enumerate(bare)
            for name, p in chunk.named_parameters()
        },
        "saved": {name for entries in sharded_weights(bare).values() for name in entries},
        "states": sum(name.endswith("norm._extra_state") for chunk in bare for name in chunk.sharded_state_dict()),
        "classes": sorted({type(module).__module__.split(".")[0] for chunk in bare for module in chunk.modules()}),
    }
    samples = [[sample_of(step, n, config.condition) for n in range(BATCH)] for step in range(STEPS)]
    first = worker.step(session, samples[0])
    parts = session.optimizer.chained_optimizers
    found["gradients"] = [grad.float().flatten().clone() for part in parts for grad in compat.gradients(part)]
    found["losses"], found["norms"] = zip(first, *(worker.step(session, each) for each in samples[1:]))
    found["calls"] = extension.CALLS[0]
    found["parameters"] = worker.gather(session)
    world.leave_layout()
    return found


def difference(one: Any, other: Any) -> float:
    """The largest relative one of any parameter, by norms."""
    return max(float((one[name] - value).norm() / value.norm().clamp(min=1e-12)) for name, value in other.items())


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The relative one of all gradients together, over all ranks."""
    mine, theirs = torch.cat(one), torch.cat(other)
    sums = torch.stack([(mine - theirs).square().sum(), theirs.square().sum()])
    torch.distributed.all_reduce(sums)
    return float((sums[0] / sums[1]).sqrt())


def compared(options: list[str], what: str) -> dict[str, Any]:
    """The layout without and with it."""
    local, engine = trained(options, ""), trained(options, what)
    return {
        "gradients": distance(engine["gradients"], local["gradients"]),
        "calls": [local["calls"], engine["calls"]],
        "same": {name: local[name] == engine[name] for name in ("names", "marks", "saved")},
        "classes": [local["classes"], engine["classes"]],
        "states": [local["states"], engine["states"]],
        "losses": [local["losses"], engine["losses"]],
        "norms": [local["norms"], engine["norms"]],
        "parameters": difference(engine["parameters"], local["parameters"]),
    }


def main() -> None:
    """Entry point."""
    from megatron.core import __version__ as megatron

    what, output, layouts = sys.argv[1:]
    found = {name: compared(options, what) for name, options in json.loads(layouts).items()}
    if torch.distributed.get_rank() == 0:
        Path(output).write_text(json.dumps({"megatron": megatron, "layouts": found}), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
