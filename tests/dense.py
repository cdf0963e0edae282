"""An independent dense implementation of the model, straight from tests/golden/README.md: interleaved token order,
boolean mask, released key names.

Shares no code with the package, so that both being wrong in the same way is unlikely.  Slow and small on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Tiny:
    """Sizes of a small model."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    groups: int = 4
    ffn: int = 128
    channels: int = 4
    table: int = 32
    theta: float = 10000.0
    eps: float = 1e-5
    long_factor: tuple[float, ...] = ()
    longest: int = 4096
    original: int = 4096


def random_weights(tiny: Tiny, seed: int) -> dict[str, Tensor]:
    """Spread, non-zero weights under their released names (the text table holds the three hint rows)."""
    draw = torch.Generator().manual_seed(seed)
    d, q, kv = tiny.width, tiny.width, tiny.width // tiny.heads * tiny.groups
    shapes = {"llm.embed_tokens.weight": (3, d), "llm.norm.weight": (d,)}
    for name in ("x_embedder.proj", "input_x_embedder.proj"):
        shapes |= {f"{name}.weight": (d, tiny.channels, 2, 2), f"{name}.bias": (d,)}
    for name in ("time_token", "t_embedder"):
        shapes |= {
            f"{name}.mlp.0.weight": (d, 256),
            f"{name}.mlp.0.bias": (d,),
            f"{name}.mlp.2.weight": (d, d),
            f"{name}.mlp.2.bias": (d,),
        }
    shapes |= {"final_layer.linear.weight": (4 * tiny.channels, d), "final_layer.linear.bias": (4 * tiny.channels,)}
    shapes |= {"final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,)}
    for n in range(tiny.layers):
        prefix = f"llm.layers.{n}."
        shapes |= {prefix + "input_layernorm.weight": (d,), prefix + "post_attention_layernorm.weight": (d,)}
        shapes |= {prefix + "self_attn.qkv_proj.weight": (q + 2 * kv, d), prefix + "self_attn.o_proj.weight": (d, q)}
        shapes |= {
            prefix + "mlp.gate_up_proj.weight": (2 * tiny.ffn, d),
            prefix + "mlp.down_proj.weight": (d, tiny.ffn),
        }
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=draw) * (
            1.5 / math.sqrt(math.prod(shape[1:]) or 1) if len(shape) > 1 else 0.2
        )
        weights[name] = 1 + value if "norm" in name else value
    return weights


def tokens(blocks: list[int]) -> list[tuple[int, bool, int]]:
    """(clip, clean, frame) of every frame block in recorded order."""
    result, first = [], 0
    for k, count in enumerate(blocks):
        frames = range(first, first + count)
        result += [(k, False, f) for f in frames]
        if k < len(blocks) - 1:
            result += [(k, True, f) for f in frames]
        first += count
    return result


def mask(blocks: list[int], patches: int) -> Tensor:
    """Boolean ``[L, L]`` from the rule of section 4."""
    levels = {False: [0, 1] + [2] * patches, True: [0] + [1] * patches + [2]}
    rows = [(clip, clean, frame, level) for clip, clean, frame in tokens(blocks) for level in levels[clean]]
    table = torch.tensor([[int(value) for value in row] for row in rows])
    cq, nq, fq, aq = (table[:, None, i] for i in range(4))
    ck, nk, fk, ak = (table[None, :, i] for i in range(4))
    noisy_noisy = (nq == 0) & (nk == 0) & (cq == ck) & (ak <= aq)
    noisy_clean = (nq == 0) & (nk == 1) & (ck < cq)
    clean_clean = (nq == 1) & (nk == 1) & ((fk < fq) | ((fk == fq) & (ak <= aq)))
    return noisy_noisy | noisy_clean | clean_clean


def rotate(x: Tensor, position: Tensor, tiny: Tiny) -> Tensor:
    """RoPE on ``[H, L, d]``."""
    dim = x.shape[-1]
    frequency = tiny.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    factor = 1.0
    if tiny.long_factor:
        frequency = frequency / torch.tensor(tiny.long_factor, dtype=torch.float64)
        if tiny.longest > tiny.original:
            factor = math.sqrt(1 + math.log(tiny.longest / tiny.original) / math.log(tiny.original))
    angle = position.double()[:, None] * frequency
    cos, sin = (factor * angle.cos()).to(x.dtype), (factor * angle.sin()).to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def sinusoid(t: Tensor) -> Tensor:
    """``[F, 256]``."""
    angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def network(w: dict[str, Tensor], name: str, t: Tensor) -> Tensor:
    """Linear, SiLU, linear on the sinusoid."""
    inner = F.silu(
        F.linear(sinusoid(t).to(w[f"{name}.mlp.0.weight"].dtype), w[f"{name}.mlp.0.weight"], w[f"{name}.mlp.0.bias"])
    )
    return F.linear(inner, w[f"{name}.mlp.2.weight"], w[f"{name}.mlp.2.bias"])


def table_crop(tiny: Tiny, rows: int, columns: int) -> Tensor:
    """``[P, D]`` of a frame."""
    omega = 10000.0 ** (-torch.arange(tiny.width // 4, dtype=torch.float64) / (tiny.width // 4))
    result = []
    for r in range(rows):
        for c in range(columns):
            u, v = (
                torch.tensor(float((tiny.table - n) // 2 + i)) / (tiny.table / 64) for n, i in ((columns, c), (rows, r))
            )
            result.append(torch.cat([fn(value.double() * omega) for value in (u, v) for fn in (torch.sin, torch.cos)]))
    return torch.stack(result).float()


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def decoder(w: dict[str, Tensor], tiny: Tiny, x: Tensor, place: Tensor, allowed: Tensor) -> Tensor:
    """Hidden states ``[L, D]`` at positions ``[L]``, who sees whom ``[L, L]`` -> the same behind the final norm."""
    dim = tiny.width // tiny.heads
    for n in range(tiny.layers):
        name = f"llm.layers.{n}."
        normed = rms(x, w[name + "input_layernorm.weight"], tiny.eps)
        q, k, v = F.linear(normed, w[name + "self_attn.qkv_proj.weight"]).split(
            [tiny.width, dim * tiny.groups, dim * tiny.groups], dim=-1
        )
        q, k, v = (part.reshape(len(place), -1, dim).transpose(0, 1) for part in (q, k, v))
        q, k = rotate(q, place, tiny), rotate(k, place, tiny)
        k, v = (part.repeat_interleave(tiny.heads // tiny.groups, dim=0) for part in (k, v))
        scores = (q @ k.transpose(1, 2) / math.sqrt(dim)).masked_fill(~allowed, float("-inf"))
        x = x + F.linear(
            (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(place), -1), w[name + "self_attn.o_proj.weight"]
        )
        gate, up = F.linear(
            rms(x, w[name + "post_attention_layernorm.weight"], tiny.eps), w[name + "mlp.gate_up_proj.weight"]
        ).chunk(2, dim=-1)
        x = x + F.linear(up * F.silu(gate), w[name + "mlp.down_proj.weight"])
    return rms(x, w["llm.norm.weight"], tiny.eps)


def forward(w: dict[str, Tensor], tiny: Tiny, blocks: list[int], noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """Noisy ``[N, C, h, w]``, clean ``[M, C, h, w]``, timesteps ``[N]`` -> predicted clean latents ``[N, C, h, w]``."""
    height, width = noisy.shape[-2:]
    rows, columns = height // 2, width // 2
    patches, crop = rows * columns, table_crop(tiny, rows, columns).to(noisy.dtype)
    hint, time = w["llm.embed_tokens.weight"], network(w, "time_token", t)

    def embed(latent: Tensor, name: str) -> Tensor:
        return F.conv2d(latent[None], w[f"{name}.weight"], w[f"{name}.bias"], stride=2)[0].flatten(1).T + crop

    pieces, position, noisy_slots = [], [], []
    for _, is_clean, frame in tokens(blocks):
        if is_clean:
            pieces += [hint[1:2], embed(clean[frame], "input_x_embedder.proj"), hint[2:3]]
        else:
            start = len(position)
            noisy_slots.append(range(start + 2, start + 2 + patches))
            pieces += [hint[0:1], time[frame : frame + 1], embed(noisy[frame], "x_embedder.proj")]
        position += [frame * (patches + 2) + slot for slot in range(patches + 2)]
    x, place, allowed = torch.cat(pieces), torch.tensor(position), mask(blocks, patches)
    x = decoder(w, tiny, x, place, allowed)
    modulation = F.linear(
        F.silu(network(w, "t_embedder", t)),
        w["final_layer.adaLN_modulation.1.weight"],
        w["final_layer.adaLN_modulation.1.bias"],
    )
    result = []
    for frame, slots in enumerate(noisy_slots):
        shift, scale = modulation[frame].chunk(2)
        out = F.layer_norm(x[list(slots)], (tiny.width,), eps=1e-6) * (1 + scale) + shift
        out = F.linear(out, w["final_layer.linear.weight"], w["final_layer.linear.bias"]).reshape(
            rows, columns, 2, 2, tiny.channels
        )
        result.append(out.permute(4, 0, 2, 1, 3).reshape(tiny.channels, height, width))
    return torch.stack(result)
