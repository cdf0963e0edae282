"""The command line with the layers of Transformer Engine, over its stand-in: `engine_run.py train CONFIG ...`."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "nvidia"), str(REPOSITORY)]
from megatron_videogpt.platforms import activate  # noqa: E402

activate("cpu")
from megatron_videogpt.__main__ import main  # noqa: E402
from megatron_videogpt.model import layers  # noqa: E402

layers.has_transformer_engine = lambda platform: True

if __name__ == "__main__":
    sys.exit(main())
