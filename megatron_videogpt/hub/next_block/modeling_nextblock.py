"""The transformer of next block prediction without megatron-core: ids to logits, keys and values of finished blocks
kept.  Names of the state dict are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

try:
    from .configuration_nextblock import NextBlockConfig
except ImportError:  # the folder itself is on sys.path
    from configuration_nextblock import NextBlockConfig  # type: ignore[no-redef]

Rotary = tuple[Tensor, Tensor] | None
"""Cosines and sines of the positions; None where nothing is rotated."""


@dataclass
class NextBlockOutput(ModelOutput):
    """logits: of each token, float32 ``[B, L, V]``: its place in the next block, see `NextBlockModel.forward`."""

    logits: Tensor | None = None


class NextBlockCache:
    """Keys and values of finished blocks, ``[B, groups, length, d]`` a layer, in room for `most` tokens."""

    def __init__(self, most: int) -> None:
        self.most, self.length = most, 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def joined(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values with these behind, which are kept."""
        if layer not in self.layers:
            shape = (*k.shape[:2], self.most, k.shape[3])
            self.layers[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        if end > self.most:
            raise ValueError(f"{end} tokens: this cache has room for {self.most}")
        for kept, new in zip(self.layers[layer], (k, v)):
            kept[:, :, self.length : end] = new
        keys, values = self.layers[layer]
        return keys[:, :, :end], values[:, :, :end]


class RMSNorm(nn.Module):
    """RMSNorm with its statistics in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def norm_of(config: NextBlockConfig) -> nn.Module:
    """The norm that a configuration names."""
    return (nn.LayerNorm if config.norm == "layer" else RMSNorm)(config.hidden_size, config.layer_norm_eps)


class Attention(nn.Module):
    """Attention to keys ``[0, end)``."""

    def __init__(self, config: NextBlockConfig, layer: int) -> None:
        super().__init__()
        self.layer, width, self.dim = layer, config.hidden_size, config.hidden_size // config.num_heads
        self.query = nn.Linear(width, width, bias=config.biases)
        self.key = nn.Linear(width, config.groups * self.dim, bias=config.biases)
        self.value = nn.Linear(width, config.groups * self.dim, bias=config.biases)
        self.proj = nn.Linear(width, width, bias=config.biases)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None, cache: NextBlockCache | None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for part in (self.query, self.key, self.value))
        q, k = _rotate(q, rotary), _rotate(k, rotary)
        if cache is not None:
            k, v = cache.joined(self.layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return self.proj(out.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """SwiGLU, the gate is the first half of the joint matrix; nothing published has it."""

    def __init__(self, config: NextBlockConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=config.biases)
        self.add_module("2", nn.Linear(config.ffn_size, config.hidden_size, bias=config.biases))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.get_submodule("2")(up * F.silu(gate))


def feed_forward(config: NextBlockConfig) -> nn.Module:
    """What a configuration names."""
    if config.activation == "swiglu":
        return GatedFeedForward(config)
    width, inner = config.hidden_size, config.ffn_size
    between = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
    return nn.Sequential(nn.Linear(width, inner, config.biases), between, nn.Linear(inner, width, config.biases))


class Block(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, config: NextBlockConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.attn = norm_of(config), Attention(config, layer)
        self.ln2, self.mlp = norm_of(config), feed_forward(config)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None, cache: NextBlockCache | None) -> Tensor:
        x = x + self.attn(self.ln1(x), rotary, mask, cache)
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    """Ids ``[B, L]`` behind what a cache holds -> hidden states of the last norm."""

    uncond_embedding: Tensor

    def __init__(self, config: NextBlockConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.pos_emb = nn.Parameter(torch.zeros(1, config.max_positions, config.hidden_size))
        if config.prefix:
            self.register_buffer("uncond_embedding", torch.zeros(config.prefix, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.ln_f = norm_of(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, cache: NextBlockCache | None, dropped: Tensor | None) -> Tensor:
        config, first = self.config, cache.length if cache is not None else 0
        x, total = self.tok_emb(ids), first + ids.shape[1]
        if dropped is not None and first < config.prefix:
            if first or total < config.prefix:
                raise ValueError(f"{ids.shape[1]} ids: a condition of {config.prefix} comes whole")
            told = torch.where(dropped[:, None, None], self.uncond_embedding.to(x.dtype), x[:, : config.prefix])
            x = torch.cat([told, x[:, config.prefix :]], 1)
        if config.positions == "learned":
            if total > config.max_positions:
                raise ValueError(f"{total} tokens: the model has learned {config.max_positions} positions")
            x = x + self.pos_emb[:, first:total]
        places = torch.arange(first, total, device=ids.device)
        seen = ends(places, config)
        if int(seen.max()) > total:
            raise ValueError(f"{total} tokens: a block of {config.block} tokens is not whole")
        whole = bool((seen == total).all())
        mask = None if whole else torch.arange(total, device=ids.device) < seen[:, None]
        rotary = rotary_of(config, places, x.dtype) if config.positions == "rope" else None
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.length = total
        return self.ln_f(x)


class NextBlockModel(PreTrainedModel):
    """Predicts the ids of the next block."""

    config_class = NextBlockConfig
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    # Published files of a model without a condition have one of no rows.
    _keys_to_ignore_on_load_unexpected = [r"transformer\.uncond_embedding"]

    def __init__(self, config: NextBlockConfig) -> None:
        config.check()
        super().__init__(config)
        self.transformer = Transformer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # What a run from scratch starts with.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            _start(module.weight, lambda tensor: init.normal_(tensor, std=self.config.init_std))
        elif isinstance(module, (RMSNorm, nn.LayerNorm)):
            _start(module.weight, init.ones_)
        elif isinstance(module, Transformer):
            if self.config.positions == "learned":
                _start(module.pos_emb, init.zeros_)
            if self.config.prefix:
                deviation = self.config.hidden_size**-0.5
                _start(module.uncond_embedding, lambda tensor: init.normal_(tensor, std=deviation))
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            _start(module.bias, init.zeros_)

    def forward(
        self,
        input_ids: Tensor,
        cache: NextBlockCache | None = None,
        dropped: Tensor | None = None,
        rows: int | None = None,
        return_dict: bool = True,
    ) -> NextBlockOutput | tuple[Tensor]:
        """Condition and video ids, whole blocks, to logits.

        Args:
            input_ids: int64 ``[B, L]``, shifted ids; behind a cache the new ones alone.
            cache: where keys and values of these ids are kept, and those before them are.
            dropped: bool ``[B]``: whose condition is replaced by `uncond_embedding`.
            rows: logits of so many last tokens; None for all.

        Raises:
            ValueError: a block that is not whole, or more tokens than there are positions.
        """
        hidden = self.transformer(input_ids, cache, dropped)
        hidden = hidden if rows is None else hidden[:, hidden.shape[1] - rows :]
        logits = self.transformer.head(hidden).float()
        return NextBlockOutput(logits=logits) if return_dict else (logits,)


def ends(places: Tensor, config: NextBlockConfig) -> Tensor:
    """The token at a place sees the keys ``[0, end)``: a condition itself, a block itself and what is before; a
    hybrid's first block goes one token at a time.
    """
    first, block = config.prefix, config.block
    seen = first + block * ((places - first).div(block, rounding_mode="floor") + 1)
    if config.mode == "hybrid":
        seen = torch.where(places < first + block, places + 1, seen)
    return seen.where(places >= first, seen.new_tensor(first))


def rotary_of(config: NextBlockConfig, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[L, d/2]``, rounded to the dtype only at the end."""
    dim = config.hidden_size // config.num_heads
    inverse = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, device=places.device).float() / dim)
    angle = places.float()[:, None] * inverse
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    if rotary is None:
        return x
    (cos, sin), (left, right) = rotary, x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def _start(tensor: Tensor, fill: Callable[[Tensor], object]) -> None:
    """Fill a tensor unless a checkpoint does."""
    # transformers (4 and 5) so marks what a checkpoint fills; only 5 has functions that look at the mark.
    if not getattr(tensor, "_is_hf_initialized", False):
        fill(tensor)


NextBlockModel.register_for_auto_class("AutoModel")
