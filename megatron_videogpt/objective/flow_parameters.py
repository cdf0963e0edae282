"""Parameters that objectives which denoise share, with the keys of Video-GPT (tests/golden/README.md, section 7).  No
PyTorch here: see `model/parameters.py`.
"""

from __future__ import annotations

from ..config.schema import ModelConfig
from ..model.parameters import linear_rules


def patch_shape(model: ModelConfig, channels: int) -> tuple[int, ...]:
    """Of a projection of patches."""
    return (model.hidden_size, channels, model.patch_size, model.patch_size)


def _frequencies(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.hidden_size, 256)


def _square(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.hidden_size, model.hidden_size)


def _modulation(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (2 * model.hidden_size, model.hidden_size)


def _output(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (model.patch_size**2 * channels, model.hidden_size)


TIME_TOKEN = (
    *linear_rules("time_token.mlp.0", "embedding.time_token.mlp.0", _frequencies, "normal"),
    *linear_rules("time_token.mlp.2", "embedding.time_token.mlp.2", _square, "normal"),
)
"""The network that makes a frame's time token."""
HEAD = (
    *linear_rules("t_embedder.mlp.0", "head.time_embedder.mlp.0", _frequencies, "normal"),
    *linear_rules("t_embedder.mlp.2", "head.time_embedder.mlp.2", _square, "normal"),
    *linear_rules("final_layer.adaLN_modulation.1", "head.modulation", _modulation, "zeros"),
    *linear_rules("final_layer.linear", "head.linear", _output, "zeros"),
)
"""Of `flow_ends.VideoHead`."""


def flow_end_weights(model: ModelConfig, channels: int, scored: float) -> float:
    """Weights outside of the decoder that a mean token meets: one patch projection and, as a share `scored` of tokens
    is read, that share of the output projection.  The networks that run once per frame are left out (together under
    1 %).
    """
    patch = model.patch_size**2 * channels
    return (patch + 1) * model.hidden_size + (model.hidden_size + 1) * patch * scored
