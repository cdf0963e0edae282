"""Layers of the factorised network: attention inside frames, to prompt frames, along time and to text.

Tokens are ``[B, T, S, D]``: videos, frames, patches of a frame, features.  Names of parameters are those of the
published checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from .cache_frameprompt import FramePromptCache
    from .configuration_frameprompt import FramePromptConfig
    from .rules_frameprompt import enhancing_frames, turned
except ImportError:  # the folder itself is on sys.path
    from cache_frameprompt import FramePromptCache  # type: ignore[no-redef]
    from configuration_frameprompt import FramePromptConfig  # type: ignore[no-redef]
    from rules_frameprompt import enhancing_frames, turned  # type: ignore[no-redef]

SINUSOIDS = 256  # features of a timestep
Text = tuple[Tensor, Tensor | None]
"""Text tokens ``[B, N, D]`` and which of them are seen, bool ``[B, N]``; None for all."""


@dataclass(frozen=True)
class Pass:
    """What the layers of one pass over ``[B, T, S, D]`` have in common.

    prompt: leading clean frames, T in a write; cache: what the pass goes on from; write: its keys and values are kept.
    mask: which frames a frame sees, see `rules_frameprompt.temporal_mask`; position: rows of the temporal table
    ``[T, D]``; turns: places of queries and of keys where they are turned instead; told: 1 for prompt frames, 0 for
    others, ``[T]``, of models with a mask channel.
    """

    prompt: int
    cache: FramePromptCache | None
    write: bool
    mask: Tensor | None
    position: Tensor | None
    turns: tuple[Tensor, Tensor] | None
    told: Tensor | None


class Projections(nn.Module):
    """The matrices of an attention layer: rows of `qkv` are all queries, then keys, then values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, and keys with values behind them: ``[..., D]`` and ``[..., 2D]``."""
        q, kv = self.qkv(x).split([self.width, 2 * self.width], -1)
        return q, kv


class Attention(Projections):
    """Self-attention of ``[..., L, D]`` over L."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.parts(x), self.heads))


class PrefixAttention(Projections):
    """Prefix enhancement: patches of a frame look at those of prompt frames (section 6)."""

    def __init__(self, width: int, heads: int, block: int, enhance: str) -> None:
        super().__init__(width, heads)
        self.block, self.enhance = block, enhance

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        q, kv = self.parts(x)
        return self.proj(self._cached(q, kv, now, now.cache) if now.cache is not None else self._whole(q, kv, now))

    def _whole(self, q: Tensor, kv: Tensor, now: Pass) -> Tensor:
        frames = enhancing_frames(self.enhance, now.prompt, q.shape[1])
        # Frames that see themselves, as often as it may be, go together, and so do all that see the same others.
        own = next((f for f, seen in enumerate(frames) if set(seen) != {f}), len(frames))
        parts = [attend(q[:, :own], kv[:, :own], self.heads)]
        if own < len(frames):
            # By number, not by a list: that would be an index tensor, and a wait for the device.
            keys = torch.cat([kv[:, frame] for frame in frames[own]], 1)
            rest = attend(q[:, own:].flatten(1, 2), keys, self.heads)
            parts.append(rest.view_as(q[:, own:]))
        return torch.cat(parts, 1)

    def _cached(self, q: Tensor, kv: Tensor, now: Pass, cache: FramePromptCache) -> Tensor:
        if now.write:
            cache.write_enhancing(self.block, kv)
            return attend(q, kv, self.heads)
        keys = cache.enhancing_keys(self.block)
        return attend(q.flatten(1, 2), keys, self.heads).view_as(q)


class TemporalAttention(Projections):
    """Attention over the frames at each place (section 5)."""

    def __init__(self, width: int, heads: int, block: int) -> None:
        super().__init__(width, heads)
        self.block = block

    def forward(self, u: Tensor, now: Pass) -> Tensor:
        q, kv = self.parts(u)
        keys = kv.transpose(1, 2) if now.cache is None else now.cache.joined(self.block, kv)
        out = attend(q.transpose(1, 2), keys, self.heads, now.mask, now.turns).transpose(1, 2)
        if now.cache is not None and now.write:
            now.cache.write(self.block, kv)
        return self.proj(out)

    def keep(self, u: Tensor, cache: FramePromptCache) -> None:
        """Keys and values into the cache, and nothing else."""
        cache.write(self.block, self.parts(u)[1])


class CrossAttention(nn.Module):
    """Every patch looks at the text of its video."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        tokens, seen = text
        mask = None if seen is None else seen[:, None, None]
        out = attend(self.q_linear(x).flatten(1, 2), self.kv_linear(tokens), self.heads, mask)
        return self.proj(out.view_as(x))


class Mlp(nn.Module):
    """Two matrices with GELU, its tanh form, between."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Five steps on the residual stream (section 2)."""

    def __init__(self, config: FramePromptConfig, block: int) -> None:
        super().__init__()
        width, heads, self.width = config.hidden_size, config.num_heads, config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn = Attention(width, heads)
        enhance = config.spatial_attn_enhance
        self.attn_cf = None if enhance is None else PrefixAttention(width, heads, block, enhance)
        self.attn_temp = TemporalAttention(width, heads, block)
        self.attn_temp_pre_merge: nn.Linear | None = None
        if not block and config.temp_extra_in_channels:
            self.attn_temp_pre_merge = nn.Linear(width + config.temp_extra_in_channels, width)
        self.cross_attn = CrossAttention(width, heads) if config.caption_channels else None
        self.mlp = Mlp(width, config.ffn_size, width)
        self.first = not block

    def forward(self, x: Tensor, modulation: Tensor, text: Text | None, now: Pass, keep_only: bool = False) -> Tensor:
        """modulation: ``[B, T, 6, D]``; keep_only: what a write leaves in the cache is all that is wanted."""
        rows = (self.scale_shift_table + modulation).unsqueeze(3).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        x = x + gate1 * self.attn(normed(x, self.width) * (1 + scale1) + shift1)
        if self.attn_cf is not None:
            x = x + gate1 * self.attn_cf(x, now)
        u = self._placed(x, now)
        if keep_only and now.cache is not None:
            self.attn_temp.keep(u, now.cache)
            return x
        x = x + gate1 * self.attn_temp(u, now)
        if self.cross_attn is not None and text is not None:
            x = x + self.cross_attn(x, text)
        return x + gate2 * self.mlp(normed(x, self.width) * (1 + scale2) + shift2)

    def _placed(self, x: Tensor, now: Pass) -> Tensor:
        """What the temporal attention reads: in the first block with position and mask channel, which do not stay."""
        if not self.first:
            return x
        if now.position is not None:
            x = x + now.position[:, None]
        if self.attn_temp_pre_merge is None or now.told is None:
            return x
        told = now.told[:, None, None].to(x.dtype).expand(*x.shape[:3], 1)
        return self.attn_temp_pre_merge(torch.cat([x, told], -1))


class TimestepEmbedder(nn.Module):
    """Whole-numbered timesteps to features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoids(t).to(self.mlp[0].weight.dtype))


class PatchEmbedder(nn.Module):
    """Latents ``[B, T, C, h, w]`` to tokens ``[B, T, S, D]``."""

    def __init__(self, config: FramePromptConfig) -> None:
        super().__init__()
        patch = tuple(config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, patch, patch)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)


class TextEmbedder(nn.Module):
    """Features of a text encoder ``[B, N, channels]`` to tokens ``[B, N, D]``; `y_embedding` stands for no text."""

    y_embedding: Tensor

    def __init__(self, config: FramePromptConfig) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.zeros(config.model_max_length, config.caption_channels))
        self.y_proj = Mlp(config.caption_channels, config.hidden_size, config.hidden_size)

    def forward(self, text: Tensor, dropped: Tensor | None) -> Tensor:
        if dropped is not None:
            text = torch.where(dropped[:, None, None], self.y_embedding[: text.shape[1]].to(text.dtype), text)
        return self.y_proj(text.to(self.y_proj.fc1.weight.dtype))


class FinalLayer(nn.Module):
    """Tokens to the values of their patches: row, column, channel, the channel fastest."""

    def __init__(self, config: FramePromptConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.zeros(2, self.width))
        self.linear = nn.Linear(self.width, math.prod(config.patch_size) * 2 * config.in_channels)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """embedded: of the timestep, ``[B, T, D]``."""
        shift, scale = (self.scale_shift_table + embedded[:, :, None]).unsqueeze(3).unbind(2)
        return self.linear(normed(x, self.width) * (1 + scale) + shift)


def normed(x: Tensor, width: int) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, (width,), eps=1e-6)


def sinusoids(t: Tensor) -> Tensor:
    """Cosines, then sines of timesteps, float32 ``[..., 256]``."""
    half = SINUSOIDS // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def attend(
    q: Tensor, kv: Tensor, heads: int, mask: Tensor | None = None, places: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Attention of ``[..., Lq, D]`` to keys and values ``[..., Lk, 2D]``, head by head, with softmax in float32.

    mask: bool, broadcasts with ``[batch, heads, Lq, Lk]``; places: of queries and keys, which are turned by them.
    """
    shape = q.shape
    q = q.reshape(-1, shape[-2], heads, shape[-1] // heads).transpose(1, 2)
    kv = kv.reshape(len(q), kv.shape[-2], 2, heads, -1)
    k, v = (part.transpose(1, 2) for part in kv.unbind(2))
    if places is not None:
        q, k = turned(q, places[0]), turned(k, places[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(shape)
