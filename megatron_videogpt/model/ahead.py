"""Attention planned where rows are prepared, ahead of the step that needs it: for the longest rows that takes seconds
of a core, and on a device the host would have to wait for the intervals first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attention import PLANNED, plan_ahead
from ..sequence.row import Mask, Row
from .factorised import SEEN
from .inputs import ordered
from .videogpt import VideoGPT


class MaskPlan:
    """`Mask.plan`: what `attention.plan_ahead` made of a mask in its order, and of its scored rows, if they are
    computed alone.  Not a dataclass: rows on their way to a device leave it where it is.
    """

    def __init__(self, whole: Any, scored: Any = None) -> None:
        self.whole, self.scored = whole, scored
        self._sent: Any = None

    def send(self, scored: bool, more: bool) -> tuple[Any, Any]:
        """Both for a pass through one of a rank's chunks, with masks on their way to the device: these live as long as
        the pass, and as those through the chunks behind it.

        scored: whether the second one is needed, None instead.  more: whether the row has chunks of this rank before
        it, which take the same.
        """
        whole = self.whole.send() if self._sent is None else self._sent
        self._sent = whole if more else None
        return whole, self.scored.send() if scored and self.scored is not None else None


def planner(chunks: Sequence[Any], device: torch.device, trains: bool = True) -> Callable[[Row], Row]:
    """What gives rows on the CPU, which may go to any of these models on `device`, the plans of their masks; with
    backends that need none, what leaves rows as they are.  chunks: without their wrapping; trains: whether rows have a
    backward pass, for which alone scored rows are all that a last layer computes.
    """
    models = [chunk for chunk in chunks if isinstance(chunk, VideoGPT) and chunk.config.interval_backend in PLANNED]
    if not models:
        return lambda row: row
    config = models[0].config
    heads, context = config.num_attention_heads // config.tensor_model_parallel_size, config.context_parallel_size
    scored = {model.last_mask for model in models if model.scored_only and trains}

    def plan(intervals: Tensor) -> Any:
        return plan_ahead(config.interval_backend, intervals, heads // context, config.kv_channels, device)

    def with_plan(number: int, mask: Mask, rows: Tensor) -> Mask:
        alone = number in scored and len(rows)
        found = MaskPlan(plan(ordered(mask, cached=False).intervals), plan(mask.intervals[rows]) if alone else None)
        return replace(mask, plan=found)

    def planned(row: Row) -> Row:
        masks = [with_plan(number, mask, row.scored_rows) for number, mask in enumerate(row.masks)]
        seen = row.context.get(SEEN)
        if seen is None or context > 1:
            # A shard's intervals to a text are its own.
            return replace(row, masks=tuple(masks))
        rows = row.scored_rows if scored else row.scored_rows[:0]
        beside = MaskPlan(plan(seen.value), plan(seen.value[rows]) if len(rows) else None)
        return replace(row, masks=tuple(masks), context={**row.context, SEEN: replace(seen, plan=beside)})

    return planned
