"""The options of the backbone as small models, with what the dense twin says of them: outputs and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tests import dense

SMALL = {"layers": 4, "width": 32, "heads": 4, "groups": 2, "ffn": 48, "table": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "norm": {"norm": "layer"},
    "activation": {"activation": "gelu"},
    "activation by tanh": {"activation": "gelu_tanh"},
    "biases": {"biases": True},
    "positions": {"positions": "learned", "longest": 24},
    "no positions": {"positions": "none"},
    "dropout": {"dropout": 0.3},
    "all": {
        "norm": "layer",
        "activation": "gelu",
        "biases": True,
        "positions": "learned",
        "longest": 24,
        "dropout": 0.1,
    },
}
"""Each option alone, and all of them as in GPT-2."""
ROWS = (([1, 2], [2]), ([1, 1, 1],))
"""Of two micro-batches: the frames of each clip of each sample; 4 x 6 latents, which are 6 patches."""


@dataclass(frozen=True)
class Sample:
    """Latents ``[N, C, 4, 6]``, as fed and as wanted, timesteps ``[N]``, and the sample's key."""

    clips: list[int]
    noisy: Tensor
    clean: Tensor
    t: Tensor
    target: Tensor
    key: int


def tiny_of(name: str) -> dense.Tiny:
    """The model with the options of this name."""
    return dense.Tiny(**SMALL, **OPTIONS[name])


def samples_of(tiny: dense.Tiny) -> list[list[Sample]]:
    """Of every row."""
    draw = torch.Generator().manual_seed(7)

    def latents(frames: int) -> Tensor:
        return torch.randn(frames, tiny.channels, 4, 6, generator=draw)

    return [
        [
            Sample(
                clips,
                latents(sum(clips)),
                latents(sum(clips[:-1])),
                torch.rand(sum(clips), generator=draw),
                latents(sum(clips)),
                2**62 + 1000 * row + number,
            )
            for number, clips in enumerate(batch)
        ]
        for row, batch in enumerate(ROWS)
    ]


def row_of(samples: list[Sample], tiny: dense.Tiny, multiple: int) -> Any:
    """A packed row of ours."""
    from megatron_videogpt.objective.flow_rows import Sequence, assemble
    from megatron_videogpt.sequence.layout import layout, training_shape

    sequences = [
        Sequence(layout(training_shape(tuple(s.clips), (2, 3))), s.noisy, s.clean, s.t, s.target, key=s.key)
        for s in samples
    ]
    return assemble(sequences, 2, tiny.table, multiple)


@lru_cache(maxsize=16)
def truth(name: str) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    """Weights, output ``[patches, p*p*C]`` of each row, and gradients of the mean loss, of the dense twin in float64
    where it matters: the sums over rows.
    """
    tiny = tiny_of(name)
    weights = {key: value.requires_grad_() for key, value in dense.random_weights(tiny, seed=5).items()}
    outputs, losses = [], []
    for row in samples_of(tiny):
        parts = []
        for s in row:
            found = dense.forward(weights, tiny, s.clips, s.noisy, s.clean, s.t, s.key)
            losses.append((found - s.target).square().mean(dim=(1, 2, 3)))
            cells = found.detach().unflatten(3, (3, 2)).unflatten(2, (2, 2))
            parts.append(cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(0, 2))
        outputs.append(torch.cat(parts))
    torch.cat(losses).mean().backward()
    gradients = {key: torch.zeros_like(w) if w.grad is None else w.grad for key, w in weights.items()}
    return {key: value.detach() for key, value in weights.items()}, outputs, gradients


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a fraction of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def config_of(tiny: dense.Tiny, **parallel: Any) -> Any:
    """Our configuration of a twin's model."""
    from megatron_videogpt.config.load import config_from_dict

    model = {
        "num_layers": tiny.layers,
        "hidden_size": tiny.width,
        "ffn_hidden_size": tiny.ffn,
        "num_attention_heads": tiny.heads,
        "num_query_groups": tiny.groups,
        "position_table_size": tiny.table,
        "max_position_embeddings": tiny.longest,
        "original_max_position_embeddings": tiny.original,
        "norm": tiny.norm,
        "activation": tiny.activation,
        "biases": tiny.biases,
        "positions": tiny.positions,
        "dropout": tiny.dropout,
    }
    return config_from_dict({"model": model, "parallel": parallel, "train": {"precision": "fp32"}})
