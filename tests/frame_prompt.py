"""An independent dense implementation of frame as prompt on the decoder, straight from its rules: a boolean matrix says
which frame sees which.  It shares the backbone with tests/dense.py and no code with the package.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.condition.options import NONE, ConditionConfig
from tests import dense

TINY = dense.Tiny(width=32, heads=2, groups=1, ffn=48)


def weights_of(seed: int = 5, scale: float = 1.0) -> dict[str, Tensor]:
    """Spread weights under the keys of the network, matrices by `scale`: in a chain of steps, errors grow with them."""
    weights = {
        key: value * scale if value.dim() > 1 else value for key, value in dense.random_weights(TINY, seed).items()
    }
    weights["hint.weight"] = weights.pop("llm.embed_tokens.weight")[:1]
    weights["class_embedding.weight"] = torch.randn(3, TINY.width, generator=torch.Generator().manual_seed(seed))
    return {key: value for key, value in weights.items() if not key.startswith("input_x_embedder")}


def build(
    weights: dict[str, Tensor], condition: ConditionConfig = NONE, backend: str = "ranged", **options: Any
) -> tuple[Any, Any]:
    """(our model with these weights, its configuration).  options: of the objective."""
    from megatron_videogpt.config.schema import Config, ModelConfig, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.objective.frame_prompt.options import FramePromptOptions
    from megatron_videogpt.platforms import activate

    model = ModelConfig(
        num_layers=TINY.layers,
        hidden_size=TINY.width,
        ffn_hidden_size=TINY.ffn,
        num_attention_heads=TINY.heads,
        num_query_groups=TINY.groups,
        position_table_size=TINY.table,
    )
    train = TrainConfig(precision="fp32")
    config = Config(model=model, train=train, condition=condition, objective=FramePromptOptions(**options))
    built = build_network(config, TINY.channels, activate("cpu"), backend)
    load_released(built, model, lambda entry: weights[entry.hf])
    return built, config


def causal(frames: int) -> Tensor:
    """Frame f sees frames 0 to f."""
    number = torch.arange(frames)
    return number[:, None] >= number[None, :]


def forward(
    w: dict[str, Tensor], frames: Tensor, t: Tensor, seen: Tensor | None = None, prefix: Tensor | None = None
) -> Tensor:
    """Frames ``[F, C, h, w]`` at timesteps ``[F]``, which of them each sees bool ``[F, F]``, and tokens ``[p, D]`` that
    all see -> what is predicted of each ``[F, C, h, w]``.
    """
    seen = causal(len(frames)) if seen is None else seen
    rows, columns = frames.shape[-2] // 2, frames.shape[-1] // 2
    crop, before = dense.table_crop(TINY, rows, columns), 0 if prefix is None else len(prefix)
    time, block = dense.network(w, "time_token", t), rows * columns + 2
    pieces = [] if prefix is None else [prefix]
    for number, frame in enumerate(frames):
        patches = F.conv2d(frame[None], w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)[0]
        pieces += [w["hint.weight"], time[number : number + 1], patches.flatten(1).T + crop]
    x = torch.cat(pieces)
    allowed = torch.zeros(len(x), len(x), dtype=torch.bool)
    allowed[:, :before] = True
    allowed[before:, before:] = seen.repeat_interleave(block, 0).repeat_interleave(block, 1)
    x = dense.decoder(w, TINY, x, torch.arange(len(x)), allowed)[before:]
    modulation = dense.linear(w, "final_layer.adaLN_modulation.1", F.silu(dense.network(w, "t_embedder", t)))
    result = []
    for number in range(len(frames)):
        shift, scale = modulation[number].chunk(2)
        tokens = x[number * block + 2 : (number + 1) * block]
        out = dense.linear(w, "final_layer.linear", F.layer_norm(tokens, (TINY.width,), eps=1e-6) * (1 + scale) + shift)
        cells = out.reshape(rows, columns, 2, 2, TINY.channels).permute(4, 0, 2, 1, 3)
        result.append(cells.reshape(TINY.channels, 2 * rows, 2 * columns))
    return torch.stack(result)


class Twin:
    """The denoiser of the twin, without any cache: each call runs all frames of the rollout, under a matrix that says
    what each of them saw when it was finished.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def begin(self, conditions: list[Tensor | None]) -> None:
        self.conditions = conditions
        self.frames: list[Tensor] = []

    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        if not self.frames:
            self.frames = [history[:0] for history in histories]
            self.lowest = [list[int]() for _ in histories]
            self.first = [0] * len(histories)
        for video, (history, old) in enumerate(zip(histories, kept, strict=True)):
            if not old:
                self.frames[video], self.lowest[video], self.first[video] = history[:0], [], 0
            new = history[old:]
            self.frames[video] = torch.cat([self.frames[video], new])
            self.lowest[video] += [self.first[video]] * len(new)

    def forget(self, frames: list[int]) -> None:
        self.first = [first + gone for first, gone in zip(self.first, frames)]

    @torch.no_grad()
    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], None]:
        assert not guided
        found = []
        for video, clip in enumerate(clips):
            past, told = self.frames[video], self.conditions[video]
            frames = torch.cat([past, clip])
            lowest = torch.tensor(self.lowest[video] + [self.first[video]] * len(clip))
            seen = causal(len(frames)) & (torch.arange(len(frames)) >= lowest[:, None])
            times = torch.cat([torch.ones(len(past)), torch.full((len(clip),), t)])
            prefix = None if told is None else self.weights["class_embedding.weight"][told]
            found.append(forward(self.weights, frames, times, seen, prefix)[len(past) :])
        return found, None
