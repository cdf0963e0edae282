"""Options of the model: the section [model]."""

from __future__ import annotations

from dataclasses import dataclass

from .sections import option


@dataclass(frozen=True)
class ModelConfig:
    """The backbone and its video embedding and head.

    The defaults are a Phi-3 decoder (RMSNorm, RoPE, SwiGLU, no biases); norm=layer, activation=gelu, biases=true and
    positions=learned together are one like GPT-2's.
    """

    num_layers: int = option(32, "decoder layers")
    hidden_size: int = option(3072, "width D of the residual stream; a multiple of 4 (2-D sin-cos table)")
    ffn_hidden_size: int = option(8192, "inner width F of the feed-forward")
    num_attention_heads: int = option(32, "query heads")
    num_query_groups: int = option(0, "key/value heads (grouped-query attention); 0 means num_attention_heads")
    patch_size: int = option(2, "latent cells per patch side (p)")
    position_table_size: int = option(192, "side S of the 2-D position table: the most patches per side of a frame")
    norm_epsilon: float = option(1e-5, "epsilon of the norms")
    rope_theta: float = option(10000.0, "RoPE base")
    rope_scaling: dict = option(
        {}, 'long RoPE: {type="longrope", long_factor=[...], short_factor=[...]} as in a Phi-3 config; {} for none'
    )
    max_position_embeddings: int = option(
        4096, "as in a Phi-3 config: long RoPE reads it, and positions=learned has a table of so many rows"
    )
    original_max_position_embeddings: int = option(4096, "as in a Phi-3 config; only long RoPE reads it")
    init_std: float = option(0.02, "standard deviation of initial backbone, embedding and time-network weights")
    norm: str = option(
        "rms",
        "norm before attention, before the feed-forward and after the last layer: rms (RMSNorm) or layer (LayerNorm "
        "with weight and bias)",
        choices=("rms", "layer"),
    )
    activation: str = option(
        "swiglu",
        "of the feed-forward: swiglu (gated, three matrices), or gelu (exact) or gelu_tanh (its approximation by tanh) "
        "between two matrices",
        choices=("swiglu", "gelu", "gelu_tanh"),
    )
    biases: bool = option(
        False,
        "biases of the joint query, key and value projection, of attention's output projection "
        "and of the feed-forward's matrices",
    )
    positions: str = option(
        "rope",
        "of tokens in their sequence: rope (rotated queries and keys), learned (a table of max_position_embeddings "
        "rows added to the embeddings) or none",
        choices=("rope", "learned", "none"),
    )
    dropout: float = option(
        0.0,
        "share of the channels that training drops from the sum of embeddings, attention's output and the "
        "feed-forward's output; drawn from the sample's key, the same in every layout",
    )

    @property
    def kv_heads(self) -> int:
        """Key/value heads after resolving 0."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward's first matrix makes a gate beside what it gates."""
        return self.activation == "swiglu"

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.hidden_size // self.num_attention_heads
