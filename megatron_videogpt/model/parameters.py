"""One table of parameters: released (Phi-3 style) key, our name, how the two relate, how tensor parallelism shards it,
how it starts.

Initialisation, loading, saving and parity checks all read this table (tests/golden/README.md, section 7), and `check`
counts parameters with it: no PyTorch here, `tensors` does with tensors what the rules say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..config.schema import ModelConfig

EMBED_TOKENS = "llm.embed_tokens.weight"
"""The text embedding table; we keep only the rows of the three hint tokens."""
POSITION_TABLE = "pos_embed"
"""A fixed buffer of the released format; recomputed here, never loaded."""


@dataclass(frozen=True)
class Rule:
    """hf: released key; name: our key; form: plain, patch, hint, qkv or gate_up; split: TP dimension (None:
    replicated); init: see `initial`.

    ``{l}`` stands for the layer, counted over the whole model.
    """

    hf: str
    name: str
    form: str = "plain"
    split: int | None = None
    init: str = "normal"


def _linear(hf: str, name: str, weight: str, bias: str = "zeros", form: str = "plain") -> tuple[Rule, Rule]:
    return Rule(f"{hf}.weight", f"{name}.weight", form=form, init=weight), Rule(f"{hf}.bias", f"{name}.bias", init=bias)


RULES: tuple[Rule, ...] = (
    *_linear("x_embedder.proj", "embedding.noisy_patch", "zeros", form="patch"),
    *_linear("input_x_embedder.proj", "embedding.clean_patch", "xavier", form="patch"),
    *_linear("time_token.mlp.0", "embedding.time_token.mlp.0", "normal"),
    *_linear("time_token.mlp.2", "embedding.time_token.mlp.2", "normal"),
    Rule(EMBED_TOKENS, "embedding.hint", form="hint"),
    Rule("llm.layers.{l}.input_layernorm.weight", "decoder.layers.{l}.input_layernorm.weight", init="ones"),
    Rule(
        "llm.layers.{l}.self_attn.qkv_proj.weight",
        "decoder.layers.{l}.self_attention.linear_qkv.weight",
        form="qkv",
        split=0,
    ),
    Rule("llm.layers.{l}.self_attn.o_proj.weight", "decoder.layers.{l}.self_attention.linear_proj.weight", split=1),
    Rule("llm.layers.{l}.post_attention_layernorm.weight", "decoder.layers.{l}.pre_mlp_layernorm.weight", init="ones"),
    Rule("llm.layers.{l}.mlp.gate_up_proj.weight", "decoder.layers.{l}.mlp.linear_fc1.weight", form="gate_up", split=0),
    Rule("llm.layers.{l}.mlp.down_proj.weight", "decoder.layers.{l}.mlp.linear_fc2.weight", split=1),
    Rule("llm.norm.weight", "decoder.final_layernorm.weight", init="ones"),
    *_linear("t_embedder.mlp.0", "head.time_embedder.mlp.0", "normal"),
    *_linear("t_embedder.mlp.2", "head.time_embedder.mlp.2", "normal"),
    *_linear("final_layer.adaLN_modulation.1", "head.modulation", "zeros"),
    *_linear("final_layer.linear", "head.linear", "zeros"),
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model: its released key, its name with global layer numbers, and its rule."""

    hf: str
    name: str
    rule: Rule


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """All parameters of a model, in the table's order."""
    for rule in RULES:
        for layer in range(model.num_layers) if "{l}" in rule.hf else (0,):
            yield Parameter(rule.hf.replace("{l}", str(layer)), rule.name.replace("{l}", str(layer)), rule)


def hf_shape(parameter: Parameter, model: ModelConfig, channels: int) -> tuple[int, ...]:
    """Shape of the released tensor (of the three hint rows for the text table)."""
    width, patch = model.hidden_size, model.patch_size
    query, key = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.noisy_patch.weight": (width, channels, patch, patch),
        "embedding.clean_patch.weight": (width, channels, patch, patch),
        "embedding.time_token.mlp.0.weight": (width, 256),
        "embedding.time_token.mlp.2.weight": (width, width),
        "embedding.hint": (3, width),
        "self_attention.linear_qkv.weight": (query + 2 * key, width),
        "self_attention.linear_proj.weight": (width, query),
        "mlp.linear_fc1.weight": (2 * model.ffn_hidden_size, width),
        "mlp.linear_fc2.weight": (width, model.ffn_hidden_size),
        "head.time_embedder.mlp.0.weight": (width, 256),
        "head.time_embedder.mlp.2.weight": (width, width),
        "head.modulation.weight": (2 * width, width),
        "head.modulation.bias": (2 * width,),
        "head.linear.weight": (patch * patch * channels, width),
        "head.linear.bias": (patch * patch * channels,),
    }
    name = re.sub(r"^decoder\.layers\.\d+\.", "", parameter.name)
    return shapes.get(name, (width,))
