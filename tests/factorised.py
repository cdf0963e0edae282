"""The network of `outside/outside_factorised`, which has everything that layers may ask for: masks with an order and
groups, side inputs of the row, whole and per token, and trained ones.  `tests/factorised_dense.py` says what it
computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.model.videogpt import VideoGPT
from megatron_videogpt.platforms import activate
from megatron_videogpt.sequence.row import Context, Row
from tests.factorised_dense import CHANNELS, MODEL, Sample, sides_of
from tests.outside.outside_factorised.ends import ENDS
from tests.outside.outside_factorised.rows import Video, assemble


def row_of(samples: Sequence[Sample], multiple: int = 8, weights: dict[str, Tensor] | None = None) -> Row:
    """A packed row.  weights: of the network that computes trained side inputs, where the row is to bring its results
    instead, for pipelines.
    """
    row = assemble([Video(**sample.numbers, prompt=sample.prompt) for sample in samples], multiple)
    if weights is None:
        return row
    sides = sides_of(weights, row.units["level"], row.context["words"].value)
    return replace(row, context=row.context | {name: Context(value) for name, value in sides.items()})


def config_of(**parallel: Any) -> Config:
    """Configuration of the toy in a layout."""
    return config_from_dict({"model": MODEL, "parallel": parallel, "train": {"precision": "fp32"}})


def build(config: Config, backend: str, weights: dict[str, Tensor]) -> list[VideoGPT]:
    """The chunks of this rank, with these weights; without trained side inputs in a pipeline."""
    ends = ENDS if config.parallel.pipeline == 1 else ENDS._replace(sides=None)
    chunks = [
        VideoGPT(config, CHANNELS, activate("cpu"), backend, ends, chunk)
        for chunk in range(config.parallel.virtual_pipeline)
    ]
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in named(chunk):
                parameter.copy_(cut(name, weights[name], chunk))
    return chunks


def named(chunk: VideoGPT) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their name in the whole model."""
    for name, parameter in chunk.named_parameters():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(chunk.decoder.layers[int(parts[2])].layer_number - 1)
        yield ".".join(parts), parameter


def cut(name: str, full: Tensor, chunk: VideoGPT) -> Tensor:
    """What this tensor parallel rank has of a parameter, or of its gradient."""
    group = chunk.pg_collection.tp
    rank, size = group.rank(), group.size()
    if name.endswith("fc1.weight"):
        return torch.cat([half.chunk(size)[rank] for half in full.chunk(2)])
    if name.endswith(("qkv.weight", "query.weight", "key_value.weight")):
        return full.chunk(size)[rank]
    return full.chunk(size, dim=1)[rank] if name.endswith(("proj.weight", "out.weight", "fc2.weight")) else full
