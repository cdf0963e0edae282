"""The factorised network of Ca2-VDM as a small model, and its dense twin: plain torch, one video at a time, with the
published keys and from the rules of the published network.  It knows no rows, intervals or orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.objective.frame_prompt.factorised.parameters import table_of
from megatron_videogpt.objective.frame_prompt.factorised.rows import Text, Video
from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant
from tests.factorised_dense import drawn

CHANNELS, HEADS, LAYERS, WIDTH = 3, 4, 2, 32
MODEL = ModelConfig(
    num_layers=LAYERS,
    hidden_size=WIDTH,
    ffn_hidden_size=48,
    num_attention_heads=HEADS,
    position_table_size=8,
    norm="layer",
    norm_epsilon=1e-6,
    activation="gelu_tanh",
    biases=True,
    positions="none",
)
VARIANTS = {
    "with text": Variant(places=9, text_width=5, text_tokens=4),
    "without": Variant(places=9, space_scale=0.5, time_scale=1.5),
    "partial": Variant("none", 0, False, "partial", "fixed", 12, text_width=5, text_tokens=4),
    "full, first frame": Variant("first_frame", 0, False, "full"),
}
ROWS = (((5, 3, 4, 4), (6, 4, 4, 4), (5, 1, 6, 4), (4, 3, 2, 8)), ((4, 2, 4, 4), (3, 1, 2, 2)))
"""Two packed rows of videos: frames, given ones, height and width of the latents.  In the second, a frame of the prompt
counts several times.
"""


def video_of(numbers: tuple[int, int, int, int], key: int, variant: Variant) -> Video:
    """A video whose numbers follow from `key`; every third drops its text, and every second has one in parts."""
    frames, prompt, height, width = numbers

    def draw(what: str, *shape: int) -> Tensor:
        return drawn(f"{key}/{what}", shape)

    places = (key + torch.arange(frames)) % variant.places
    timestep = torch.where(torch.arange(frames) < prompt, 0, 137 * (key + 1) % 1000)
    text = None
    if variant.text_width:
        mask = torch.arange(variant.text_tokens) < 1 + key % variant.text_tokens if key % 2 else None
        text = Text(draw("text", variant.text_tokens, variant.text_width), mask, key % 3 == 2)
    shape = (frames - prompt, CHANNELS, height, width)
    latents = draw("latents", frames, CHANNELS, height, width)
    return Video(latents, prompt, timestep, places, text, draw("noise", *shape), draw("start", *shape), key=key)


def rows_of(variant: Variant) -> list[list[Video]]:
    """`ROWS` as videos."""
    found, key = [], 0
    for row in ROWS:
        found.append([video_of(numbers, key + place, variant) for place, numbers in enumerate(row)])
        key += len(row)
    return found


def weights_of(variant: Variant, model: ModelConfig = MODEL) -> dict[str, Tensor]:
    """Weights by their published keys, not one of them zero."""
    found = {}
    for entry in table_of(variant).entries(model):
        shape = entry.shape(model, CHANNELS)
        value = drawn(entry.hf, shape)
        found[entry.hf] = value / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3 * value
    return found


def twin(w: dict[str, Tensor], video: Video, variant: Variant, layers: int = LAYERS) -> Tensor:
    """Noise and raw variance of all frames ``[T, 2C, h, w]``."""
    frames, channels, height, width = video.latents.shape
    tall, wide = height // 2, width // 2
    weight = w["x_embedder.proj.weight"]
    size = len(weight)
    x = F.conv3d(video.latents.transpose(0, 1)[None], weight, w["x_embedder.proj.bias"], stride=(1, 2, 2))[0]
    x = x.permute(1, 2, 3, 0).flatten(1, 2) + _spatial(tall, wide, size, variant.space_scale)
    e = _linear(w, "t_embedder.mlp.2", F.silu(_linear(w, "t_embedder.mlp.0", _waves(video.timestep))))
    m = _linear(w, "t_block.1", F.silu(e)).view(frames, 1, 6, size)
    words = _words(w, video, variant)
    for number in range(layers):
        name = f"blocks.{number}."
        shift1, scale1, gate1, shift2, scale2, gate2 = (w[f"{name}scale_shift_table"] + m).unbind(2)
        x = x + gate1 * _attend(w, f"{name}attn", _norm(x) * (1 + scale1) + shift1, None)
        if variant.enhance != "none":
            x = x + gate1 * _enhance(w, f"{name}attn_cf", x, video.prompt, variant)
        u = x
        if number == 0:
            table = _sines(torch.arange(variant.places) / variant.time_scale, size)
            u = u + table[video.places][:, None]
            if variant.mask_channel:
                given = (torch.arange(frames) < video.prompt).float()[:, None, None].expand(*x.shape[:2], 1)
                u = _linear(w, "blocks.0.attn_temp_pre_merge", torch.cat([u, given], dim=-1))
        sees = torch.ones(frames, frames).tril().bool()
        if variant.time == "full":
            sees[:] = True
        elif variant.time == "partial":
            sees[video.prompt :] = True
        x = x + gate1 * _attend(w, f"{name}attn_temp", u.transpose(0, 1), sees).transpose(0, 1)
        if words is not None:
            q = _linear(w, f"{name}cross_attn.q_linear", x)
            k, v = _linear(w, f"{name}cross_attn.kv_linear", words).chunk(2, dim=-1)
            k, v = (part.expand(frames, -1, -1) for part in (k, v))
            x = x + _linear(w, f"{name}cross_attn.proj", _softmax(q, k, v, None))
        inner = F.gelu(_linear(w, f"{name}mlp.fc1", _norm(x) * (1 + scale2) + shift2), approximate="tanh")
        x = x + gate2 * _linear(w, f"{name}mlp.fc2", inner)
    shift, scale = (w["final_layer.scale_shift_table"] + e[:, None]).unbind(1)
    out = _linear(w, "final_layer.linear", _norm(x) * (1 + scale[:, None]) + shift[:, None])
    cells = out.view(frames, tall, wide, 2, 2, 2 * channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(frames, 2 * channels, height, width)


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _waves(t: Tensor) -> Tensor:
    angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _sines(place: Tensor, width: int) -> Tensor:
    angle = place.double()[:, None] * 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def _spatial(tall: int, wide: int, width: int, scale: float) -> Tensor:
    found = []
    for row in range(tall):
        for column in range(wide):
            found.append(torch.cat(list(_sines(torch.tensor([column, row]) / scale, width // 2))))
    return torch.stack(found)


def _words(w: dict[str, Tensor], video: Video, variant: Variant) -> Tensor | None:
    if not variant.text_width:
        return None
    text = video.text
    assert text is not None
    tokens = w["y_embedder.y_embedding"].detach() if text.dropped else text.tokens
    seen = tokens if text.mask is None else tokens[text.mask]
    inner = F.gelu(_linear(w, "y_embedder.y_proj.fc1", seen), approximate="tanh")
    return _linear(w, "y_embedder.y_proj.fc2", inner)


def _softmax(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if sees is not None:
        scores = scores.masked_fill(~sees, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _attend(w: dict[str, Tensor], name: str, x: Tensor, sees: Tensor | None) -> Tensor:
    q, k, v = _linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    return _linear(w, f"{name}.proj", _softmax(q, k, v, sees))


def _enhance(w: dict[str, Tensor], name: str, x: Tensor, prompt: int, variant: Variant) -> Tensor:
    q, k, v = _linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    out = []
    for frame in range(len(x)):
        if variant.enhance == "first_frame":
            keys = [0]
        elif frame < prompt:
            keys = [frame] * variant.enhance_frames
        else:
            keys = [max(prompt - 1 - number, 0) for number in range(variant.enhance_frames)]
        out.append(_softmax(q[frame : frame + 1], k[keys].flatten(0, 1)[None], v[keys].flatten(0, 1)[None], None))
    return _linear(w, f"{name}.proj", torch.cat(out))


def patches_of(latents: Tensor) -> Tensor:
    """``[T, C, h, w]`` -> ``[T * S, 4C]``, channel fastest."""
    frames, channels, height, width = latents.shape
    cells = latents.reshape(frames, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4 * channels)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Summed over scored tokens; output ``[n, 8C]``, target ``[n, 4C]``: of noise and of variance."""
    noise, variance = output.unflatten(1, (4, -1)).chunk(2, dim=2)
    wanted = target.unflatten(1, (4, -1))
    return (noise - wanted).square().sum() + (variance + wanted).square().sum()


def truth(
    rows: Sequence[Sequence[Video]], variant: Variant, weights: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The twin's output for the noisy frames of each row as patches, and the gradients of their loss divided by the
    count of noisy frames; zero where there is none.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    outputs, losses, count = [], [], 0
    for videos in rows:
        parts = [patches_of(twin(leaves, video, variant)[video.prompt :]) for video in videos]
        targets = [patches_of(video.noise) for video in videos if video.noise is not None]
        outputs.append(torch.cat(parts))
        losses.append(loss_of(outputs[-1], torch.cat(targets)))
        count += sum(len(video.latents) - video.prompt for video in videos)
    found = torch.autograd.grad(torch.stack(losses).sum() / count, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found)
    }
    return [output.detach() for output in outputs], gradients


def without_repeats(rows: Sequence[Sequence[Video]], variant: Variant) -> list[list[Video]]:
    """The same videos with prompts that no frame of counts several times in: as training has them."""
    return [
        [replace(video, prompt=1) if 1 < video.prompt < variant.enhance_frames else video for video in row]
        for row in rows
    ]
