"""Single tensors of megatron-core checkpoints by the table's entries: read from any layout, or described for saving in
one.

Layers lie stacked under one key, along a leading axis; no model is built, so that only the tensors asked for are in
memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from torch import Tensor

from ..checkpoint.average import PREFIX
from ..checkpoint.load import readable
from ..config.derived import stage_layers
from ..config.schema import Config, ModelConfig
from ..errors import UserError
from ..model.parameters import BEFORE, Parameter, padded_words
from ..model.tensors import to_hf
from ..objective.build import parameter_table


def _stacked(name: str) -> tuple[str, int | None]:
    """Our name -> its key in a checkpoint and the layer, None outside of the layers."""
    found = re.fullmatch(r"(decoder\.layers)\.(\d+)\.(.*)", name)
    return (f"{found[1]}.{found[3]}", int(found[2])) if found else (name, None)


class Weights:
    """The weights of a checkpoint, or their moving average, one tensor at a time; one process, in the process groups of
    `platforms.world`.

    Raises ValueError when one of the model's is missing or has another shape.
    """

    def __init__(self, path: Path, config: Config, average: bool = False) -> None:
        model = config.model
        self.path, self.model, self.prefix = path, model, f"{PREFIX}." if average else ""
        self.held = readable(path, lambda: dist_checkpointing.load_tensors_metadata(str(path)))
        self.entries = tuple(parameter_table(config).entries(model))
        patches = [self._described(entry) for entry in self.entries if entry.rule.form in ("patch", "frame_patch")]
        # A network of ids has no use for them.
        self.channels = patches[0].global_shape[1] // model.patch_size**2 if patches else 0
        for entry in self.entries:
            described = self._described(entry)
            count = described.global_shape[0] if _stacked(entry.name)[1] is not None else 0
            wanted = _full_shape(entry, model, self.channels)
            if described.global_shape != ((count, *wanted) if count else wanted) or count not in (0, model.num_layers):
                raise UserError(
                    f"{path}: {entry.name} has shape {described.global_shape} there, which does not fit the "
                    "model of its config.toml"
                )

    def _described(self, entry: Parameter) -> ShardedTensor:
        key = self.prefix + _stacked(entry.name)[0]
        if key not in self.held:
            raise UserError(f"{self.path}: tensor {key} is missing; expected a checkpoint of this package's model")
        return self.held[key]

    def dtype(self, entry: Parameter) -> torch.dtype:
        """Of a parameter as it is stored."""
        return self._described(entry).dtype

    def shape(self, entry: Parameter) -> tuple[int, ...]:
        """Of a parameter in released layout."""
        return entry.shape(self.model, self.channels)

    def tensor(self, entry: Parameter) -> Tensor:
        """A whole parameter in released layout, in its stored dtype."""
        key, layer = _stacked(entry.name)
        described = self._described(entry)
        shape = described.global_shape if layer is None else (1, *described.global_shape[1:])
        place = [] if layer is None else [(0, layer, self.model.num_layers)]
        # A prepended axis, as the model's own layers have, would mean that all layers are asked for when there is one
        # process.
        wanted = ShardedTensor.from_rank_offsets(self.prefix + key, torch.empty(shape, dtype=described.dtype), *place)
        contents = {"tensor": wanted}
        loaded = readable(
            self.path, lambda: dist_checkpointing.load(contents, str(self.path), validate_access_integrity=False)
        )["tensor"]
        return to_hf(entry, loaded if layer is None else loaded[0], self.model)


def _full_shape(entry: Parameter, model: ModelConfig, channels: int) -> tuple[int, ...]:
    shape, form = entry.shape(model, channels), entry.rule.form
    if form in ("patch", "frame_patch"):
        return shape[0], math.prod(shape[1:])
    if form == "vocabulary":
        return padded_words(shape[0]), *shape[1:]
    return shape[1:] if form == "one" else shape


def held_by(config: Config, stage: int) -> Iterator[Parameter]:
    """The parameters of one pipeline stage, as `model.videogpt` deals them out."""
    first = sum(stage_layers(config)[:stage])
    layers = range(first, first + stage_layers(config)[stage])
    for entry in parameter_table(config).entries(config.model):
        layer = _stacked(entry.name)[1]
        place = stage == 0 if entry.name.startswith(BEFORE) else stage == config.parallel.stages - 1
        if place if layer is None else layer in layers:
            yield entry


def described(entry: Parameter, part: Tensor, config: Config, rank: int) -> list[ShardedTensor]:
    """megatron-core's description of what tensor parallel rank `rank` holds of a parameter (`tensors.shard` of it).

    Gate and up are two tensors: as one, megatron-core would copy both while it saves.
    """
    key, layer = _stacked(entry.name)
    size, split = config.parallel.tensor, entry.rule.split
    stacked = layer is not None
    place = [(0, layer, config.model.num_layers)] if stacked else []
    replica = (0, rank if split is None else 0, 0)

    def of(tensor: Tensor, number: int, count: int) -> ShardedTensor:
        cut = [] if split is None else [(split + stacked, number, count)]
        return ShardedTensor.from_rank_offsets(
            key, tensor, *place, *cut, replica_id=replica, prepend_axis_num=int(stacked)
        )

    if entry.rule.form == "gate_up":
        gate, up = part.chunk(2)
        return [of(gate.clone(), rank, 2 * size), of(up.clone(), size + rank, 2 * size)]
    return [of(part, rank, size)]


def empty_states(config: Config, stage: int, rank: int) -> list[ShardedObject]:
    """The states beside the weights that megatron-core asks a checkpoint for (scales of 8-bit formats; empty here), one
    per linear map of a pipeline stage's layers that tensor parallelism splits.
    """
    first, count = sum(stage_layers(config)[:stage]), config.model.num_layers
    start, end = "decoder.layers.{l}.", ".weight"
    linear = [
        rule.name.removeprefix(start).removesuffix(end)
        for rule in parameter_table(config).of(config.model)
        if rule.name.startswith(start) and rule.name.endswith(end) and rule.split is not None
    ]
    return [
        ShardedObject(f"decoder.layers.{name}._extra_state", None, (count,), (layer,), (0, rank, 0))
        for name in linear
        for layer in range(first, first + stage_layers(config)[stage])
    ]
