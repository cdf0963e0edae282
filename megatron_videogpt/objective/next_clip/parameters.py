"""The parameters of Video-GPT, in the order of the released folders (tests/golden/README.md, section 7).  No PyTorch
here: see `model/parameters.py`.
"""

from __future__ import annotations

from ...config.schema import ModelConfig
from ...model.parameters import DECODER, Rule, Table, linear_rules
from ..flow_parameters import HEAD, TIME_TOKEN, flow_end_weights, patch_shape

EMBED_TOKENS = "llm.embed_tokens.weight"
"""The text embedding table; we keep only the rows of the three hint tokens."""
POSITION_TABLE = "pos_embed"
"""A fixed buffer of the released format; recomputed here, never loaded."""


TABLE = Table(
    (
        *linear_rules("x_embedder.proj", "embedding.noisy_patch", patch_shape, "zeros", form="patch"),
        *linear_rules("input_x_embedder.proj", "embedding.clean_patch", patch_shape, "xavier", form="patch"),
        *TIME_TOKEN,
        Rule(EMBED_TOKENS, "embedding.hint", lambda model, channels: (3, model.hidden_size), form="hint"),
        *DECODER,
        *HEAD,
    )
)


def end_weights(model: ModelConfig, channels: int) -> float:
    """See `flow_end_weights`: every other token is noisy."""
    return flow_end_weights(model, channels, 0.5)
