"""Exponential moving average of the weights: float32, sharded like the optimizer's state, in the
checkpoint beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch import Tensor, nn

from ..platforms import compat

PREFIX = "ema"
"""Of the average's keys in a checkpoint: ``ema.<parameter>``."""


class Average:
    """``average = decay * average + (1 - decay) * weights`` after every update, starting from the weights.

    chunks: the model chunks of this rank (without their wrapping); the weights are the optimizer's float32 main
    parameters.
    """

    def __init__(self, chunks: Sequence[nn.Module], optimizer: Any, decay: float) -> None:
        self.chunks, self.optimizer, self.decay = chunks, optimizer, decay
        self.shards = [shard.detach().clone() for shard in self._main()]

    def _main(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """After an optimizer update; taken: bool ``[]`` on the device, False leaves the average as it is."""
        weight = (1.0 - self.decay) * taken.float()
        for shard, main in zip(self.shards, self._main()):
            shard.lerp_(main, weight)

    def restart(self) -> None:
        """Start again from the current weights."""
        for shard, main in zip(self.shards, self._main()):
            shard.copy_(main.detach())

    def _places(self) -> dict[nn.Parameter, tuple[Tensor, int, int]]:
        """Model parameter -> (this rank's shard of its average, start and end in the flattened parameter)."""
        number = {id(main): shard for main, shard in zip(self._main(), self.shards)}
        return {
            parameter: (number[id(main)], start, end)
            for parameter, main, start, end in compat.main_shards(self.optimizer)
        }

    @torch.no_grad()
    def sharded(self, weights: dict[str, Any]) -> dict[str, Any]:
        """The average as entries of a checkpoint.  weights: `load.sharded_weights` of the same chunks; a collective
        over data parallel ranks.
        """
        places, group = self._places(), parallel_state.get_data_parallel_group(with_context_parallel=True)

        def whole(parameter: nn.Parameter) -> Tensor:
            full = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
            if parameter in places:
                shard, start, end = places[parameter]
                full[start:end] = shard
            torch.distributed.all_reduce(full, group=group)
            return full.view(parameter.shape).cpu()

        return _entries(self.chunks, weights, whole)

    @torch.no_grad()
    def restore(self, loaded: dict[str, Any]) -> None:
        """Take this rank's shards from loaded entries (see `average_template`)."""
        places = self._places()
        for chunk, tensors in zip(self.chunks, loaded.values()):
            for name, parameter in chunk.named_parameters():
                if parameter in places:
                    shard, start, end = places[parameter]
                    shard.copy_(tensors[name].flatten()[start:end])


def average_template(chunks: Sequence[nn.Module], weights: dict[str, Any]) -> dict[str, Any]:
    """Entries to load an average into: float32 tensors of whole (tensor parallel shards of) parameters, on the CPU."""
    return _entries(chunks, weights, lambda parameter: torch.empty(parameter.shape, dtype=torch.float32))


def _entries(chunks: Sequence[nn.Module], weights: dict[str, Any], value: Any) -> dict[str, Any]:
    return {
        place: {
            name: make_sharded_optimizer_tensor(weights[place][name], value(parameter), PREFIX)
            for name, parameter in chunk.named_parameters()
        }
        for place, chunk in zip(weights, chunks)
    }


@torch.no_grad()
def use_average(chunks: Sequence[nn.Module], loaded: dict[str, Any]) -> None:
    """Overwrite the weights of a model with a loaded average."""
    for chunk, tensors in zip(chunks, loaded.values()):
        for name, parameter in chunk.named_parameters():
            parameter.copy_(tensors[name].to(parameter))
