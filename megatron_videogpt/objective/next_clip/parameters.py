"""The parameters of Video-GPT, in the order of the released folders (tests/golden/README.md, section 7).  No PyTorch
here: see `model/parameters.py`.
"""

from __future__ import annotations

from ...config.schema import ModelConfig
from ...model.parameters import DECODER, Rule, Table, linear_rules

EMBED_TOKENS = "llm.embed_tokens.weight"
"""The text embedding table; we keep only the rows of the three hint tokens."""
POSITION_TABLE = "pos_embed"
"""A fixed buffer of the released format; recomputed here, never loaded."""


def _patch(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.hidden_size, channels, model.patch_size, model.patch_size)


def _frequencies(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.hidden_size, 256)


def _square(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.hidden_size, model.hidden_size)


def _modulation(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (2 * model.hidden_size, model.hidden_size)


def _output(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.patch_size**2 * channels, model.hidden_size)


TABLE = Table(
    (
        *linear_rules("x_embedder.proj", "embedding.noisy_patch", _patch, "zeros", form="patch"),
        *linear_rules("input_x_embedder.proj", "embedding.clean_patch", _patch, "xavier", form="patch"),
        *linear_rules("time_token.mlp.0", "embedding.time_token.mlp.0", _frequencies, "normal"),
        *linear_rules("time_token.mlp.2", "embedding.time_token.mlp.2", _square, "normal"),
        Rule(EMBED_TOKENS, "embedding.hint", lambda model, channels: (3, model.hidden_size), form="hint"),
        *DECODER,
        *linear_rules("t_embedder.mlp.0", "head.time_embedder.mlp.0", _frequencies, "normal"),
        *linear_rules("t_embedder.mlp.2", "head.time_embedder.mlp.2", _square, "normal"),
        *linear_rules("final_layer.adaLN_modulation.1", "head.modulation", _modulation, "zeros"),
        *linear_rules("final_layer.linear", "head.linear", _output, "zeros"),
    )
)


def end_weights(model: ModelConfig, channels: int) -> float:
    """Weights outside of the decoder that a mean token meets: one patch projection and, as every other token is noisy,
    half of the output projection.  The networks that run once per frame are left out (together under 1 %).
    """
    patch = model.patch_size**2 * channels
    return (patch + 1) * model.hidden_size + (model.hidden_size + 1) * patch / 2
