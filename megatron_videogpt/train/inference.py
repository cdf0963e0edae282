"""A trained run as a function that predicts clean latents."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from ..attention.choice import obstacle
from ..config.schema import Config, ParallelConfig
from ..data.codec import build_codec
from ..hub.sampling_videogpt import Denoiser
from ..model.denoiser import build_denoiser
from ..model.videogpt import VideoGPT
from ..platforms import activate
from . import checkpoint, distributed
from .kernels import choose_attention


def load_model(run: Path, step: int | None = None, platform: str = "auto", average: bool = False) -> tuple[VideoGPT, Config]:
    """The model of a run's newest checkpoint (or of `step`) on one process, whatever layout trained it, and its configuration.

    average: take the moving average of the weights (optimizer.ema_decay).  Weights keep their precision on a GPU and become float32 on a CPU.
    Raises ValueError in one line when there is no such checkpoint.
    """
    path = checkpoint.find(run, step)
    config = checkpoint.checkpoint_config(path)
    device = activate(platform)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    codec = build_codec(config.codec)
    checkpoint.check_same_codec(path, codec)
    parallel = ParallelConfig()
    train = replace(config.train, precision="fp32") if device.name == "cpu" else config.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    wanted = config.attention.backend
    if wanted != "auto" and obstacle(wanted, device.device.type, dtype, config.model.head_dim):
        # The run was trained on another kind of device.
        wanted = "auto"
    config = replace(config, parallel=parallel, train=train, attention=replace(config.attention, backend=wanted))
    distributed.start(device, parallel)
    backend, _ = choose_attention(config, device)
    model = VideoGPT(config, codec.channels, device, backend)
    checkpoint.load_weights(path, [model], average)
    return model, config


def load_denoiser(run: Path, step: int | None = None, platform: str = "auto", average: bool = False) -> tuple[Denoiser, Config]:
    """The model of `load_model` as what the sampler calls, and its configuration."""
    model, config = load_model(run, step, platform, average)
    return build_denoiser([model], config, activate(platform).device), config
