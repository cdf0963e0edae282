"""Parameters and FLOPs of a network from its sizes, before anything is built.

Parameters are counted from the same table that names and initialises them (`parameters`), so they are exact.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ..config.schema import ModelConfig
from .parameters import BEFORE, DECODER, Table

LAYER = Table(tuple(rule for rule in DECODER if "{l}" in rule.name))
SIZES = tuple(
    """hidden_size ffn_hidden_size num_attention_heads num_query_groups patch_size norm activation biases positions
    max_position_embeddings""".split()
)
"""Options of the model that its number of parameters follows from, beside the number of layers."""


def component_parameters(table: Table, model: ModelConfig, channels: int) -> dict[str, int]:
    """Component -> number of parameters of the whole model; the fixed position table is none, nor what is never trained
    (`Rule.rate` 0), which published networks have as buffers.
    """
    counts: dict[str, int] = {}
    for parameter in table.entries(model):
        if not parameter.rule.rate:
            continue
        component = component_of(parameter.name)
        counts[component] = counts.get(component, 0) + math.prod(parameter.shape(model, channels))
    return counts


def component_of(name: str) -> str:
    """The part of the model that a parameter belongs to: embedding.noisy_patch, ..., decoder.layers,
    decoder.final_layernorm, head.linear, ...
    """
    return ".".join(name.split(".")[:2])


def sharded_parameters(table: Table, model: ModelConfig, channels: int, tensor: int) -> tuple[int, int, int]:
    """Parameters that one of `tensor` ranks holds, trained or not, of: a layer, what comes before the layers, what
    comes after them.
    """
    return _counts(table, tuple(getattr(model, name) for name in SIZES), channels, tensor)


# A planner asks for the same few shapes thousands of times.
@lru_cache(maxsize=256)
def _counts(table: Table, sizes: tuple[Any, ...], channels: int, tensor: int) -> tuple[int, int, int]:
    model = ModelConfig(num_layers=1, **dict(zip(SIZES, sizes)))
    layer = first = last = 0
    for parameter in table.entries(model):
        count = math.prod(parameter.shape(model, channels)) // (tensor if parameter.rule.split is not None else 1)
        if ".layers." in parameter.name:
            layer += count
        elif parameter.name.startswith(BEFORE):
            first += count
        else:
            last += count
    return layer, first, last


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of one decoder layer."""
    return sharded_parameters(LAYER, model, 0, 1)[0]


def feed_forward_weights(model: ModelConfig) -> int:
    """Of the matrices of one layer's feed-forward."""
    return (3 if model.gated else 2) * model.hidden_size * model.ffn_hidden_size


def query_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's queries: their rows of the joint projection."""
    return model.num_attention_heads * model.head_dim * (model.hidden_size + model.biases)


def _key_value_parameters(model: ModelConfig) -> int:
    """Parameters of one layer that every row needs: the first norm, and keys and values."""
    norm = model.hidden_size * (2 if model.norm == "layer" else 1)
    return norm + 2 * model.kv_heads * model.head_dim * (model.hidden_size + model.biases)


def linear_flops(model: ModelConfig, ends: float, tokens: float) -> float:
    """FLOPs of one forward and backward pass through weights: 6 per weight and token.  ends: weights outside of the
    decoder that a mean token meets, as its objective counts them.
    """
    return 6 * (model.num_layers * layer_parameters(model) + ends) * tokens


def attention_flops(model: ModelConfig, pairs: float) -> float:
    """FLOPs of one forward and backward pass through attention: 12 per attended pair, channel and layer; pairs that the
    mask rules out do not count.
    """
    return 12 * pairs * model.num_attention_heads * model.head_dim * model.num_layers


def unscored_flops(model: ModelConfig, tokens: float, pairs: float) -> float:
    """FLOPs of one forward and backward pass that the last layer does not need on `tokens` rows which no head reads: of
    these rows, which attend `pairs` pairs, only keys and values matter.
    """
    return (
        6 * (layer_parameters(model) - _key_value_parameters(model)) * tokens
        + attention_flops(model, pairs) / model.num_layers
    )


def training_flops(
    model: ModelConfig,
    weights: tuple[float, float],
    tokens: float,
    pairs: float,
    unscored: tuple[float, float] = (0.0, 0.0),
) -> float:
    """Model FLOPs of one forward and backward pass over tokens and attended pairs, less `unscored_flops` of the
    (tokens, pairs) of rows that no head reads, where they are known.

    weights: FLOPs of a token and of a pair (`ObjectiveWork.weights`).  Recomputed activations, norms, softmax and the
    optimizer do not count, as is usual for MFU.
    """
    return weights[0] * tokens + weights[1] * pairs - unscored_flops(model, *unscored)
