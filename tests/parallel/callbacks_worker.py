"""Trains several configurations one after another in the processes of one launch, whatever becomes of each: under
torchrun `callbacks_worker.py CASES.json OUTCOMES`, where a case is [configuration file, [overrides]]; rank r writes
OUTCOMES.r, of each case the exception and what it came from, or nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Entry point under torchrun."""
    from megatron_videogpt.config.check import load_checked
    from megatron_videogpt.platforms import activate

    activate("cpu")
    import torch

    from megatron_videogpt.errors import one_line
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.trainer import train

    outcomes = []
    for file, overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            train(load_checked(file, overrides, 2))
            outcomes.append(["", "", ""])
        except Exception as error:  # noqa: BLE001  (what the test looks at)
            outcomes.append([type(error).__name__, one_line(error), type(error.__cause__).__name__])
        world.leave_layout()
    rank = torch.distributed.get_rank()
    Path(f"{sys.argv[2]}.{rank}").write_text(json.dumps(outcomes), encoding="utf-8")
    world.stop()


if __name__ == "__main__":
    main()
