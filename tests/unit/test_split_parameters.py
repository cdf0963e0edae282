"""What tensor parallelism splits must be saved in parts, and a run that would not do so does not start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from megatron_videogpt.errors import UserError

pytestmark = pytest.mark.usefixtures("processes")


class Chunk(nn.Module):
    """One split weight, described as a part of it, or as all of it."""

    def __init__(self, in_parts: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, 1  # type: ignore[attr-defined]
        self.offsets = ((2, 0, 2),) if in_parts else ()

    def sharded_state_dict(self) -> dict[str, Any]:
        """As in a stack of three layers, whose number is an axis of its own."""
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        offsets = ((0, 1, 3), *self.offsets)
        return {"weight": ShardedTensor.from_rank_offsets("weight", self.weight, *offsets, prepend_axis_num=1)}


@pytest.mark.parametrize("size", [1, 2])
def test_a_part_that_would_be_saved_as_all_is_refused(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import parallel_state

    from megatron_videogpt.checkpoint.parts import check_split

    monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_world_size", lambda: size)
    check_split([Chunk(in_parts=True)])
    if size == 1:
        check_split([Chunk(in_parts=False)])
        return
    with pytest.raises(UserError, match="Chunk: weight is split over parallel.tensor, .* MegatronModule"):
        check_split([Chunk(in_parts=True), Chunk(in_parts=False)])
