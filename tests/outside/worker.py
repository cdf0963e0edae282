"""Trains several configurations one after another in the processes of one launch, as `python -m megatron_videogpt
train` would each: under torchrun `worker.py CASES.json`, a list of [configuration file, [overrides]].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Entry point under torchrun."""
    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.platforms import activate

    activate("cpu")
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.trainer import train

    for file, overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(load_config(file, overrides))
        world.leave_layout()
    world.stop()


if __name__ == "__main__":
    main()
