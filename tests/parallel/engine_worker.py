"""Layers of Transformer Engine, over its stand-in, against the local ones, one after the other: `engine_worker.py
OUTPUT.json LAYOUTS` under torchrun, or alone; layouts: JSON, name -> options.
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

from megatron_videogpt.model import layers  # noqa: E402

STEPS = 3


def use(engine: bool) -> None:
    """Take Transformer Engine's layers, as on an NVIDIA GPU, or the local ones."""
    layers.has_transformer_engine = lambda platform: engine


def trained(options: list[str]) -> dict[str, Any]:
    """What a few steps in a layout give: losses, norms of gradients, main parameters; names and shapes; classes."""
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
    found["losses"], found["norms"] = zip(*(worker.step(session, each) for each in samples))
    found["parameters"] = worker.gather(session)
    world.leave_layout()
    return found


def difference(one: Any, other: Any) -> float:
    """The largest relative one of any parameter, by norms."""
    return max(float((one[name] - value).norm() / value.norm().clamp(min=1e-12)) for name, value in other.items())


def compared(options: list[str]) -> dict[str, Any]:
    """The layout with both kinds of layers."""
    results = []
    for engine in (False, True):
        use(engine)
        results.append(trained(options))
    local, engine = results
    return {
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

    found = {name: compared(options) for name, options in json.loads(sys.argv[2]).items()}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"megatron": megatron, "layouts": found}), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
