"""Networks with random weights: for measurements of which only the shape matters, and for comparisons of layouts."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor


def spread(parameter: Any, config: Any, channels: int) -> Tensor:
    """Non-zero start value ``[...]`` float32 of a parameter, from its name alone.

    The real start has a zero head, which gives the backbone no gradient in the first step, and biases of zero.
    """

    shape = parameter.shape(config.model, channels)
    digest = hashlib.blake2b(parameter.hf.encode(), digest_size=7).digest()
    draws = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))
    if len(shape) > 1:
        return 0.5 * draws / math.sqrt(math.prod(shape[1:]))
    return (1.0 if "norm" in parameter.hf else 0.0) + 0.2 * draws


def network(config: Any, channels: int, ends: Any = None) -> Any:
    """The configured objective's network with `spread` weights, on the CPU in this process alone.

    channels: latent channels of the codec; ends: what stands around the decoder (`model.videogpt.Ends`), where it is
    not what the objective says.
    """
    from megatron_videogpt.platforms import activate, world

    # megatron-core looks for its device as it is imported.
    platform = activate("cpu")
    from megatron.core import parallel_state

    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.build import build_network

    if not parallel_state.model_parallel_is_initialized():
        world.start(platform, config.parallel)
    if ends is None:
        built = build_network(config, channels, platform, "ranged")
    else:
        built = VideoGPT(config, channels, platform, "ranged", ends)
    with torch.no_grad():
        load_released(built, config.model, lambda entry: spread(entry, config, channels))
    return built
