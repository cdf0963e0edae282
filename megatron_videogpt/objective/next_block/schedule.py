"""The published learning rate of next block prediction."""

from __future__ import annotations

import math
from typing import Any


def nbp_cosine(options: Any, step: int, steps: int) -> float:
    """Step k runs at tick max(k - 1, 0): warm-up from 0, then a cosine that is counted from tick 0 and not from the end
    of the warm-up, a small step down there; 0 from tick `steps` on.  `optimizer.min_lr` has no part in it.
    """
    tick = max(step - 1, 0)
    if tick < options.warmup_steps:
        return float(options.lr * tick / options.warmup_steps)
    return float(options.lr * (1 + math.cos(math.pi * tick / steps)) / 2) if tick < steps else 0.0
