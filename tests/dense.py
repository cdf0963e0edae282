"""An independent dense implementation of the model, straight from tests/golden/README.md: interleaved token order,
boolean mask, released key names.

Shares no code with the package, so that both being wrong in the same way is unlikely.  Slow and small on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import dropout_numbers as numbers

Drop = Callable[[int, Tensor], Tensor]


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
    norm: str = "rms"
    activation: str = "swiglu"
    biases: bool = False
    positions: str = "rope"
    dropout: float = 0.0


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
    if tiny.norm == "layer":
        shapes["llm.norm.bias"] = (d,)
    if tiny.positions == "learned":
        shapes["llm.embed_positions.weight"] = (tiny.longest, d)
    for n in range(tiny.layers):
        prefix = f"llm.layers.{n}."
        if tiny.norm == "layer":
            shapes |= {prefix + "input_layernorm.bias": (d,), prefix + "post_attention_layernorm.bias": (d,)}
        shapes |= {prefix + "input_layernorm.weight": (d,), prefix + "post_attention_layernorm.weight": (d,)}
        shapes |= {prefix + "self_attn.qkv_proj.weight": (q + 2 * kv, d), prefix + "self_attn.o_proj.weight": (d, q)}
        first = ("gate_up", 2 * tiny.ffn) if tiny.activation == "swiglu" else ("up", tiny.ffn)
        shapes |= {f"{prefix}mlp.{first[0]}_proj.weight": (first[1], d), prefix + "mlp.down_proj.weight": (d, tiny.ffn)}
        if tiny.biases:
            shapes |= {prefix + "self_attn.qkv_proj.bias": (q + 2 * kv,), prefix + "self_attn.o_proj.bias": (d,)}
            shapes |= {f"{prefix}mlp.{first[0]}_proj.bias": (first[1],), prefix + "mlp.down_proj.bias": (d,)}
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=draw) * (
            1.5 / math.sqrt(math.prod(shape[1:]) or 1) if len(shape) > 1 else 0.2
        )
        weights[name] = 1 + value if "norm" in name and name.endswith("weight") else value
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


def normed(w: dict[str, Tensor], tiny: Tiny, name: str, x: Tensor) -> Tensor:
    if tiny.norm == "rms":
        return rms(x, w[f"{name}.weight"], tiny.eps)
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + tiny.eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """With its bias where there is one."""
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def feed_forward(w: dict[str, Tensor], tiny: Tiny, name: str, x: Tensor) -> Tensor:
    if tiny.activation == "swiglu":
        gate, up = linear(w, f"{name}.gate_up_proj", x).chunk(2, dim=-1)
        return linear(w, f"{name}.down_proj", up * F.silu(gate))
    up = linear(w, f"{name}.up_proj", x)
    if tiny.activation == "gelu":
        share = 0.5 * (1 + torch.erf(up / math.sqrt(2)))
    else:
        share = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return linear(w, f"{name}.down_proj", up * share)


def decoder(
    w: dict[str, Tensor], tiny: Tiny, x: Tensor, place: Tensor, allowed: Tensor, drop: Drop = lambda number, x: x
) -> Tensor:
    """Hidden states ``[L, D]`` at positions ``[L]``, who sees whom ``[L, L]`` -> the same behind the final norm.

    drop: `drop(number, x)` of the sum of embeddings (number 0), of layer n's attention (2n + 1) and its feed-forward
    (2n + 2).
    """
    dim = tiny.width // tiny.heads
    if tiny.positions == "learned":
        x = x + w["llm.embed_positions.weight"][place]
    x = drop(0, x)
    for n in range(tiny.layers):
        name = f"llm.layers.{n}."
        q, k, v = linear(w, name + "self_attn.qkv_proj", normed(w, tiny, name + "input_layernorm", x)).split(
            [tiny.width, dim * tiny.groups, dim * tiny.groups], dim=-1
        )
        q, k, v = (part.reshape(len(place), -1, dim).transpose(0, 1) for part in (q, k, v))
        if tiny.positions == "rope":
            q, k = rotate(q, place, tiny), rotate(k, place, tiny)
        k, v = (part.repeat_interleave(tiny.heads // tiny.groups, dim=0) for part in (k, v))
        scores = (q @ k.transpose(1, 2) / math.sqrt(dim)).masked_fill(~allowed, float("-inf"))
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(place), -1)
        x = x + drop(2 * n + 1, linear(w, name + "self_attn.o_proj", attended))
        inner = feed_forward(w, tiny, name + "mlp", normed(w, tiny, name + "post_attention_layernorm", x))
        x = x + drop(2 * n + 2, inner)
    return normed(w, tiny, "llm.norm", x)


def stored(blocks: list[int], patches: int) -> list[int]:
    """Of each token in recorded order: its place where all clean frames come first, then each noisy clip with all its
    hint tokens, all its time tokens, all its patches.
    """
    size, kept = patches + 2, sum(blocks[:-1])
    places = []
    for clip, clean, frame in tokens(blocks):
        first = sum(blocks[:clip])
        start, count, number = (kept + first) * size, blocks[clip], frame - first
        if clean:
            places += [frame * size + slot for slot in range(size)]
        else:
            patch = start + 2 * count + number * patches
            places += [start + number, start + count + number, *range(patch, patch + patches)]
    return places


def dropped(tiny: Tiny, blocks: list[int], patches: int, key: int) -> Drop:
    """What dropout does to the tokens of a sample, by the text of `megatron_videogpt/model/dropout.py`."""
    if not tiny.dropout:
        return lambda number, x: x
    places = stored(blocks, patches)

    def drop(number: int, x: Tensor) -> Tensor:
        stays = [numbers.kept(key, place, number, x.shape[1], tiny.dropout) for place in places]
        return x * torch.tensor(stays).to(x.dtype) / (1 - tiny.dropout)

    return drop


def forward(
    w: dict[str, Tensor],
    tiny: Tiny,
    blocks: list[int],
    noisy: Tensor,
    clean: Tensor,
    t: Tensor,
    key: int = 0,
    prefix: Tensor | None = None,
) -> Tensor:
    """Noisy ``[N, C, h, w]``, clean ``[M, C, h, w]``, timesteps ``[N]`` -> predicted clean latents ``[N, C, h, w]``;
    key: of the sample, which dropout goes by; prefix: tokens ``[p, D]`` before the video, which see each other and are
    seen by all, at the first p positions.
    """
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
    before = 0 if prefix is None else len(prefix)
    if prefix is not None:
        assert not tiny.dropout
        x, place = torch.cat([prefix, x]), torch.cat([torch.arange(before), before + place])
        whole = torch.zeros(len(x), len(x), dtype=torch.bool)
        whole[:, :before], whole[before:, before:] = True, allowed
        allowed = whole
    x = decoder(w, tiny, x, place, allowed, dropped(tiny, blocks, patches, key))[before:]
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
