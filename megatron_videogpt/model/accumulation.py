"""Weight gradients that the kernel which computes them adds to the buffer of float32 gradients: megatron-core's
`gradient_accumulation_fusion`, by an extension of NVIDIA Apex.
"""

from __future__ import annotations

import importlib

from ..config.schema import Config

EXTENSION = "fused_weight_gradient_mlp_cuda"


def obstacle(platform: str) -> str:
    """Why a platform cannot do this, or an empty string."""
    if platform != "cuda":
        return f"NVIDIA Apex's kernel is for NVIDIA GPUs, and this is {platform}"
    try:
        importlib.import_module(EXTENSION)
    except ImportError as error:
        return f"NVIDIA Apex's extension {EXTENSION} cannot be imported: {error}"
    return ""


def fuses(config: Config, platform: str) -> bool:
    """Whether a model of this configuration does it: never where nothing is trained that could not."""
    return config.parallel.gradient_accumulation_fusion == "on" and not obstacle(platform)
