"""The dense twin of the network of `outside/outside_factorised`, in plain torch and from the rules, one sample at a
time: it knows no rows, intervals, orders or groups.

Layers alternate between attention inside a frame and attention of one cell over time; each also attends words of its
sample (cross-attention) and is modulated by its frame's noise level (adaLN-single: six vectors a frame, and a table a
layer).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.outside.outside_factorised.parameters import WORD

CHANNELS = 3
MODEL = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "position_table_size": 8,
}


class Sample(NamedTuple):
    """A video of `frames` x `cells` tokens with `words` words; its first `prompt` frames are given, not predicted."""

    key: int
    frames: int
    cells: int
    words: int
    prompt: int = 0

    def draw(self, what: str, *shape: int) -> Tensor:
        """Normally distributed numbers that belong to the sample."""
        return drawn(f"{self.key}/{what}", shape)

    @property
    def numbers(self) -> dict[str, Tensor]:
        """patch ``[frames, cells, C]``, target, words ``[words, E]``, level ``[frames]``."""
        return {
            "patch": self.draw("patch", self.frames, self.cells, CHANNELS),
            "target": self.draw("target", self.frames, self.cells, CHANNELS),
            "words": self.draw("words", self.words, WORD),
            "level": self.draw("level", self.frames),
        }


ROWS = (
    (Sample(1, 3, 4, 2), Sample(2, 3, 4, 3, prompt=1), Sample(3, 2, 5, 1), Sample(4, 4, 3, 4, prompt=3)),
    (Sample(5, 5, 2, 3, prompt=2), Sample(6, 1, 7, 2)),
)
"""Two packed rows; leading samples of the first share their size, and so the groups."""


def drawn(name: str, shape: Sequence[int]) -> Tensor:
    """Normally distributed float32 numbers from a name."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides_of(weights: dict[str, Tensor], level: Tensor, words: Tensor) -> dict[str, Tensor]:
    """What `Sides` computes."""
    waves = torch.stack([level.cos(), level.sin()], dim=-1)
    return {
        "modulation": F.linear(waves, weights["sides.level.weight"], weights["sides.level.bias"]),
        "text": F.silu(F.linear(words, weights["sides.word.weight"], weights["sides.word.bias"])),
    }


def weights_of() -> dict[str, Tensor]:
    """Weights of the whole model, not one of them zero."""
    width, ffn, layers = MODEL["hidden_size"], MODEL["ffn_hidden_size"], MODEL["num_layers"]
    joint = (MODEL["num_attention_heads"] + 2 * MODEL["num_query_groups"]) * width // MODEL["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"decoder.final_layernorm.weight": (width,)}
    linear = {"embedding.patch": (width, CHANNELS), "head.linear": (CHANNELS, width)}
    for name, shape in (linear | {"sides.level": (6 * width, 2), "sides.word": (width, WORD)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for number in range(layers):
        layer = {f"{norm}_layernorm.weight": (width,) for norm in ("input", "pre_mlp")}
        layer |= {"pre_cross_attn_layernorm.weight": (width,), "table": (6, width)}
        layer |= {
            "self_attention.linear_qkv.weight": (joint, width),
            "self_attention.linear_proj.weight": (width, width),
        }
        layer |= {f"words.{name}.weight": (width, width) for name in ("query", "out")}
        layer |= {"words.key_value.weight": (2 * width, width)}
        layer |= {"mlp.linear_fc1.weight": (2 * ffn, width), "mlp.linear_fc2.weight": (width, ffn)}
        shapes |= {f"decoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    spread = {name: drawn(name, shape) for name, shape in shapes.items()}
    return {
        name: value / math.sqrt(value.shape[1]) if value.dim() > 1 else ("norm" in name) + 0.3 * value
        for name, value in spread.items()
    }


def twin(weights: dict[str, Tensor], sample: Sample) -> Tensor:
    """What the network says of the tokens of one sample that are predicted ``[n, C]``."""
    return answer(weights, sample.numbers, sample.prompt)


def answer(weights: dict[str, Tensor], numbers: Mapping[str, Tensor], prompt: int) -> Tensor:
    """The same from a sample's numbers; they are more than its first `prompt` frames."""
    width, heads = MODEL["hidden_size"], MODEL["num_attention_heads"]
    (frames, cells), words = numbers["patch"].shape[:2], len(numbers["words"])
    frame = torch.arange(frames).repeat_interleave(cells)
    cell = torch.arange(cells).repeat(frames)
    word = torch.arange(words)
    space = frame[:, None] == frame
    time = (cell[:, None] == cell) & (frame <= frame[:, None])
    seen = (word <= frame[:, None] % words) | (word == words - 1)
    sides = sides_of(weights, numbers["level"], numbers["words"])
    patch = numbers["patch"].flatten(0, 1)
    x = F.linear(patch, weights["embedding.patch.weight"], weights["embedding.patch.bias"])
    for number in range(MODEL["num_layers"]):
        w = {
            key.split(".", 3)[3]: value for key, value in weights.items() if key.startswith(f"decoder.layers.{number}.")
        }
        step = (sides["modulation"].view(-1, 6, width) + w["table"])[frame]
        normed = _norm(x, w["input_layernorm.weight"]) * (1 + step[:, 0]) + step[:, 1]
        joint = F.linear(normed, w["self_attention.linear_qkv.weight"])
        groups = MODEL["num_query_groups"]
        q, k, v = joint.view(len(x), groups, -1, width // heads).split([heads // groups, 1, 1], dim=2)
        q, k, v = _turn(q.flatten(1, 2)), _turn(k.expand_as(q).flatten(1, 2)), v.expand_as(q).flatten(1, 2)
        out = _softmax(q, k, v, time if number % 2 else space)
        x = x + step[:, 2] * F.linear(out, w["self_attention.linear_proj.weight"])
        q = F.linear(_norm(x, w["pre_cross_attn_layernorm.weight"]), w["words.query.weight"]).view(len(x), heads, -1)
        k, v = F.linear(sides["text"], w["words.key_value.weight"]).view(words, heads, 2, -1).unbind(2)
        x = x + F.linear(_softmax(q, k, v, seen), w["words.out.weight"])
        normed = _norm(x, w["pre_mlp_layernorm.weight"]) * (1 + step[:, 3]) + step[:, 4]
        gate, up = F.linear(normed, w["mlp.linear_fc1.weight"]).chunk(2, dim=-1)
        x = x + step[:, 5] * F.linear(F.silu(gate) * up, w["mlp.linear_fc2.weight"])
    x = _norm(x, weights["decoder.final_layernorm.weight"])[frame >= prompt]
    return F.linear(x, weights["head.linear.weight"], weights["head.linear.bias"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def _turn(x: Tensor) -> Tensor:
    """Rotary positions ``[L, H, d]``: tokens are counted in their sample."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None, None] * 10000.0 ** (-torch.arange(half) / half)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)


def _softmax(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    weight = scores.masked_fill(~sees, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weight, v).flatten(1)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Summed over tokens."""
    return (output - target).square().sum()


def truth(rows: Sequence[Sequence[Sample]], weights: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The twin's output for each row, and the gradients of their loss divided by the count of predicted frames."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    outputs = [torch.cat([twin(leaves, sample) for sample in samples]) for samples in rows]
    count = sum(sample.frames - sample.prompt for samples in rows for sample in samples)
    targets = [torch.cat([s.numbers["target"][s.prompt :].flatten(0, 1) for s in samples]) for samples in rows]
    losses = [loss_of(output, target) for output, target in zip(outputs, targets)]
    gradients = torch.autograd.grad(sum(losses[1:], losses[0]) / count, list(leaves.values()))
    return [output.detach() for output in outputs], dict(zip(leaves, gradients))


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a fraction of the largest value wanted, which must not be zero."""
    return float((found.detach() - wanted).abs().max() / wanted.abs().max())
