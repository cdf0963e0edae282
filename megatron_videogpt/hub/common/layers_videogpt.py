"""The layers of the exported model: a decoder like Phi-3's, or as its configuration has it, whose attention pattern is
the caller's, and what stands before and after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from .configuration_videogpt import VideoGPTConfig
except ImportError:  # the folder itself is on sys.path
    from configuration_videogpt import VideoGPTConfig  # type: ignore[no-redef]

FREQUENCIES = 256  # width of the sinusoidal timestep embedding

Rotary = tuple[Tensor, Tensor] | None
"""Cosines and sines of the positions; None where nothing is rotated."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q, k, v)` -> attention output; all ``[B, heads, L, d]``, keys and values with fewer heads where they
are grouped.
"""


def computing_device(module: nn.Module) -> torch.device:
    """Where a module computes.

    Where accelerate keeps it in host memory, its hook brings it there first: by itself it does so for `forward` only.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    return next(module.parameters()).device


class PatchEmbedder(nn.Module):
    """Latents ``[F, C, h, w]`` -> patches ``[F, P, D]``, row by row."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Timesteps ``[...]`` in [0, 1] -> ``[..., D]``: linear, SiLU, linear on 128 cosines and 128 sines computed in
    float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angle = t.float()[..., None] * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class RMSNorm(nn.Module):
    """RMSNorm with its statistics in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def norm_of(config: VideoGPTConfig) -> nn.Module:
    """The norm that a configuration names."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
    return RMSNorm(config.hidden_size, config.rms_norm_eps)


class Attention(nn.Module):
    """Attention whose pattern is the caller's; queries, keys and values come from one matrix."""

    def __init__(self, config: VideoGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, config.hidden_size // config.num_attention_heads
        self.sizes = [config.num_attention_heads, config.kv_heads, config.kv_heads]
        self.qkv_proj = nn.Linear(config.hidden_size, self.dim * sum(self.sizes), bias=config.biases)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.biases)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (-1, self.dim)).transpose(1, 2).split(self.sizes, dim=1)
        out = attend(self.layer, _rotate(q, rotary), _rotate(k, rotary), v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU, the gate is the first half of the joint matrix; or GELU between two matrices."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gated, self.approximate = (
            config.activation == "swiglu",
            "tanh" if config.activation == "gelu_tanh" else "none",
        )
        if self.gated:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=config.biases)
        else:
            self.up_proj = nn.Linear(width, inner, bias=config.biases)
        self.down_proj = nn.Linear(inner, width, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, config: VideoGPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm_of(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm_of(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The backbone: hidden states ``[B, L, D]`` at positions ``[L]`` through all layers and the last norm."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = norm_of(config)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        rotary = rotary_tables(self.config, positions, x.dtype) if self.config.positions == "rope" else None
        if self.config.positions == "learned":
            x = x + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x, rotary, attend)
        return self.norm(x)


class FinalLayer(nn.Module):
    """LayerNorm without weights, modulated by the frame's timestep, then a linear map to the values of a patch, channel
    fastest.
    """

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(width, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``[B, F, P, D]`` and the embedded timesteps ``[B, F, D]`` -> ``[B, F, P, p*p*C]``."""
        shift, scale = self.adaLN_modulation(time)[:, :, None].chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def condition_tokens(model: Any, condition: Tensor) -> Tensor:
    """Numbers of classes, int64 ``[B, 1]``, or text features ``[B, T, E]`` -> tokens ``[B, T, D]`` by the model's
    `class_embedding` or `text_projection`; ValueError where it was not trained with such a condition.
    """
    classes, texts, features = model.class_embedding, model.text_projection, condition.is_floating_point()
    layer = texts if features else classes
    if layer is None:
        wanted = "numbers of classes" if classes else "text features" if texts else "no condition"
        raise ValueError(f"condition {condition.dtype} {list(condition.shape)}: this model takes {wanted}")
    weight = layer.weight
    return layer(condition.to(weight.device, weight.dtype if features else torch.int64))


def patch_grid(config: VideoGPTConfig, latents: Tensor) -> tuple[int, int]:
    """Patches down and across of latents ``[B, F, C, h, w]``; ValueError where they are not the model's."""
    patch, side, shape = config.patch_size, config.pos_embed_max_size, tuple(latents.shape)
    if (
        len(shape) != 5
        or shape[2] != config.in_channels
        or shape[3] % patch
        or shape[4] % patch
        or not 0 < max(shape[3:]) <= patch * side
    ):
        raise ValueError(
            f"latents {list(shape)}: expected [batch, frames, {config.in_channels}, h, w], h and w "
            f"multiples of {patch} of at most {patch * side}"
        )
    return shape[3] // patch, shape[4] // patch


def token_positions(config: VideoGPTConfig, frames: Sequence[int], grid: tuple[int, int], first: int) -> Tensor:
    """``[L]`` of the tokens of frames with these numbers, behind `first` tokens of a condition; ValueError where the
    model has not learned them all.
    """
    tokens, rows = grid[0] * grid[1] + 2, config.max_position_embeddings
    if config.positions == "learned" and first + (max(frames, default=-1) + 1) * tokens > rows:
        raise ValueError(f"{max(frames) + 1} frames of {tokens} tokens: the model has learned {rows} positions")
    return (first + torch.tensor(list(frames))[:, None] * tokens + torch.arange(tokens)).flatten()


def start_weight(tensor: Tensor, fill: Callable[[Tensor], object]) -> None:
    """Fill a tensor unless a checkpoint does."""
    # transformers (4 and 5) so marks what a checkpoint fills; only 5 has functions that look at the mark.
    if not getattr(tensor, "_is_hf_initialized", False):
        fill(tensor)


def position_table(side: int, width: int) -> Tensor:
    """The fixed 2-D table ``[1, S*S, D]`` float32: of each entry (row, column) first the column's sines and cosines,
    then the row's.
    """
    omega = 1.0 / 10000.0 ** (torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    # Rounded to float32 first, because released checkpoints carry a table made that way.
    place = (torch.arange(side, dtype=torch.float32, device="cpu") / (side / 64)).double()[:, None] * omega
    axis = torch.cat([place.sin(), place.cos()], dim=-1).float()
    return torch.cat([axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)], dim=-1).reshape(
        1, side * side, width
    )


def rotary_tables(config: VideoGPTConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[L, d/2]``, rounded to the dtype only at the end: frequencies in bfloat16 would be radians
    off after some frames.
    """
    dim = config.hidden_size // config.num_attention_heads
    inverse = config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float() / dim)
    if config.rope_scaling:
        inverse = torch.tensor(config.rope_factors, dtype=torch.float32, device=positions.device) * inverse
    angle = positions.float()[:, None] * (1.0 / inverse)
    return (angle.cos() * config.rope_attention_factor).to(dtype), (angle.sin() * config.rope_attention_factor).to(
        dtype
    )


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    if rotary is None:
        return x
    (cos, sin), (left, right) = rotary, x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
