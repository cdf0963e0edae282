"""The parameters of the network around the package's own decoder layers, and in them.  No PyTorch here."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.model.parameters import DECODER, Rule, Shape, Table, linear_rules

WORD = 5
"""Features of a word."""


def _linear(name: str, shape: Shape) -> tuple[Rule, Rule]:
    return linear_rules(name, name, shape, "normal")


def _squares(factor: int) -> Shape:
    return lambda model, channels: (factor * model.hidden_size, model.hidden_size)


def _rules() -> Iterator[Rule]:
    """Nobody released this network: its own names stand for the released ones."""
    yield from _linear("embedding.patch", lambda model, channels: (model.hidden_size, channels))
    yield from DECODER
    layer = "decoder.layers.{l}."
    norm, table = f"{layer}pre_cross_attn_layernorm.weight", f"{layer}table"
    yield Rule(norm, norm, init="ones")
    yield Rule(table, table, lambda model, channels: (6, model.hidden_size))
    for name, factor, split in (("query", 1, 0), ("key_value", 2, 0), ("out", 1, 1)):
        weight = f"{layer}words.{name}.weight"
        yield Rule(weight, weight, _squares(factor), split=split)
    yield from _linear("sides.level", lambda model, channels: (6 * model.hidden_size, 2))
    yield from _linear("sides.word", lambda model, channels: (model.hidden_size, WORD))
    yield from _linear("head.linear", lambda model, channels: (channels, model.hidden_size))


TABLE = Table(tuple(_rules()))


def end_weights(model: ModelConfig, channels: int) -> float:
    """Weights that a token meets beside those of a plain decoder: in embedding and head, and in each layer the
    cross-attention's maps of its query and output.
    """
    ends = (channels + 1) * model.hidden_size + (model.hidden_size + 1) * channels
    return ends + 2 * model.num_layers * model.hidden_size**2
