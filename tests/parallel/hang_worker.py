"""`python -m megatron_videogpt <arguments>`, but rank 1 never finishes preparing its ninth row, the first of step 3."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from megatron_videogpt.__main__ import main
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion

if __name__ == "__main__":
    prepare, calls = NextClipDiffusion.prepare, 0

    def hanging(*arguments: Any) -> Any:
        global calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == 9:
            time.sleep(10_000)
        return prepare(*arguments)

    NextClipDiffusion.prepare = hanging  # type: ignore[method-assign]
    sys.exit(main())
