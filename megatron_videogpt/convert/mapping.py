"""One table of parameters: released (Phi-3 style) key, our name, how the two relate, how tensor parallelism shards it, how it starts.

Initialisation, loading, saving and parity checks all read this table (tests/golden/README.md, section 7).  Pure torch: no megatron-core here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.schema import ModelConfig

EMBED_TOKENS = "llm.embed_tokens.weight"
"""The text embedding table; we keep only the rows of the three hint tokens."""
POSITION_TABLE = "pos_embed"
"""A fixed buffer of the released format; recomputed here, never loaded."""


@dataclass(frozen=True)
class Rule:
    """hf: released key; name: our key; form: plain, patch, hint, qkv or gate_up; split: TP dimension (None: replicated); init: see `initial`.

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
    Rule("llm.layers.{l}.self_attn.qkv_proj.weight", "decoder.layers.{l}.self_attention.linear_qkv.weight", form="qkv", split=0),
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


def from_hf(parameter: Parameter, tensor: Tensor, model: ModelConfig) -> Tensor:
    """Released tensor -> our full (unsharded) tensor.

    patch: ``[D, C, p, p]`` -> ``[D, p*p*C]``, channel fastest, as the head orders its output.
    qkv: all queries, keys, values -> per key/value group its queries, key, value (megatron-core's order).
    """
    form, width = parameter.rule.form, model.hidden_size
    if form == "patch":
        return tensor.permute(0, 2, 3, 1).reshape(width, -1)
    if form == "qkv":
        groups, dim = model.kv_heads, model.head_dim
        query, key, value = tensor.split([model.num_attention_heads * dim, groups * dim, groups * dim])
        parts = [part.reshape(groups, -1, dim, width) for part in (query, key, value)]
        return torch.cat(parts, dim=1).reshape(-1, width)
    return tensor


def to_hf(parameter: Parameter, tensor: Tensor, model: ModelConfig) -> Tensor:
    """Our full tensor -> released tensor; the inverse of `from_hf`."""
    form, width = parameter.rule.form, model.hidden_size
    if form == "patch":
        patch = model.patch_size
        return tensor.reshape(width, patch, patch, -1).permute(0, 3, 1, 2).contiguous()
    if form == "qkv":
        groups, dim = model.kv_heads, model.head_dim
        heads = model.num_attention_heads // groups
        parts = tensor.reshape(groups, heads + 2, dim, width).split([heads, 1, 1], dim=1)
        return torch.cat([part.reshape(-1, width) for part in parts])
    return tensor


def shard(parameter: Parameter, tensor: Tensor, rank: int, size: int) -> Tensor:
    """The part of our full tensor that tensor parallel rank `rank` of `size` holds (gate and up are split apart first)."""
    split = parameter.rule.split
    if split is None or size == 1:
        return tensor
    if parameter.rule.form == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size, dim=split)[rank].contiguous()


def unshard(parameter: Parameter, parts: list[Tensor]) -> Tensor:
    """All ranks' parts -> our full tensor; the inverse of `shard`."""
    split = parameter.rule.split
    if split is None or len(parts) == 1:
        return parts[0]
    if parameter.rule.form == "gate_up":
        return torch.cat([torch.cat(halves) for halves in zip(*(part.chunk(2) for part in parts))])
    return torch.cat(parts, dim=split)


def initial(parameter: Parameter, model: ModelConfig, channels: int, seed: int) -> Tensor:
    """The released-layout float32 tensor a run from scratch starts with (reference README section 7), drawn from (seed, key) alone,
    so that it does not depend on the parallel layout."""
    shape, init = hf_shape(parameter, model, channels), parameter.rule.init
    if init in ("zeros", "ones"):
        return torch.full(shape, float(init == "ones"))
    digest = hashlib.blake2b(f"{seed}/{parameter.hf}".encode(), digest_size=8).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    if init == "xavier":
        bound = (6.0 / (shape[0] + math.prod(shape[1:]))) ** 0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=draws)
    assert init == "normal"
    return torch.empty(shape).normal_(0.0, model.init_std, generator=draws)
