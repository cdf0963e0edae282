"""The token order of the released model, for comparison with it: clips take turns, noisy copy first."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sequence.layout import CLEAN, Layout


def reference_order(row: Layout) -> Tensor:
    """Rows of one sequence in the recorded order: clip by clip, noisy copy first, frame by frame, slot by slot."""
    keys = zip(
        row.clip.tolist(), (row.kind == CLEAN).tolist(), row.frame.tolist(), row.position.tolist(), range(len(row))
    )
    return torch.tensor([key[-1] for key in sorted(keys)], dtype=torch.int64)
