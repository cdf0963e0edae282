"""Parameters of this rank by their layout-independent names: initialisation, loading, gathering."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor, nn

from ..config.schema import ModelConfig
from ..errors import UserError
from .parameters import Parameter, parameters
from .tensors import from_hf, initial, shard, to_hf, unshard


def _global_name(name: str, layers: nn.ModuleList) -> str:
    """`decoder.layers.<local>...` -> the same with the layer counted over the whole model."""
    head, _, rest = name.partition("decoder.layers.")
    if not rest:
        return name
    local, _, tail = rest.partition(".")
    return f"{head}decoder.layers.{layers[int(local)].layer_number - 1}.{tail}"


def named(model: nn.Module, config: ModelConfig, others: bool = False) -> Iterator[tuple[Parameter, nn.Parameter]]:
    """(table entry, parameter) of everything this rank holds.  A parameter that the table does not know is passed over
    if there may be others; an AssertionError if not.
    """
    table = {entry.name: entry for entry in parameters(config)}
    for name, parameter in model.named_parameters():
        name = _global_name(name, model.decoder.layers)
        assert others or name in table, f"{name} is not in model/parameters.py"
        if name in table:
            yield table[name], parameter


def mark_shards(model: nn.Module, config: ModelConfig, others: bool = False) -> None:
    """Tell megatron-core which parameters are sharded over the tensor parallel group, for the gradient norm; its layers
    do so only when they also initialise.  others: see `named`.
    """
    for entry, parameter in named(model, config, others):
        if entry.rule.split is not None and not hasattr(parameter, "tensor_model_parallel"):
            tensor_parallel.set_tensor_model_parallel_attributes(
                parameter, is_parallel=True, dim=entry.rule.split, stride=1
            )


@torch.no_grad()
def load_released(model: nn.Module, config: ModelConfig, tensor_of: Callable[[Parameter], Tensor]) -> None:
    """Fill this rank's parameters with `tensor_of(entry)`, a full tensor in released layout.  Raises ValueError on a
    wrong shape.
    """
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    for entry, parameter in named(model, config):
        value = shard(entry, from_hf(entry, tensor_of(entry), config), rank, size)
        if value.shape != parameter.shape:
            held, wanted = tuple(value.shape), tuple(parameter.shape)
            raise UserError(
                f"{entry.hf}: shape {held} on this rank, but the model's is {wanted}; is it a checkpoint of this model?"
            )
        parameter.copy_(value)


def initialise(model: nn.Module, config: ModelConfig, channels: int, seed: int) -> None:
    """Start values from (seed, parameter name), the same in every parallel layout."""
    load_released(model, config, lambda entry: initial(entry, config, channels, seed))


def gather_released(
    model: nn.Module, config: ModelConfig, value: Callable[[nn.Parameter], Tensor]
) -> dict[str, Tensor]:
    """`value(parameter)` (its weight, its gradient) of all parameters this pipeline stage holds, in released layout, on
    every tensor parallel rank.
    """
    group, size = (
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    full = {}
    for entry, parameter in named(model, config):
        part = value(parameter).detach().contiguous()
        parts = [part]
        if entry.rule.split is not None and size > 1:
            parts = [torch.empty_like(part) for _ in range(size)]
            torch.distributed.all_gather(parts, part, group=group)
        full[entry.hf] = to_hf(entry, unshard(entry, parts), config)
    return full
