"""A trained run, or a Hugging Face folder, as a model to sample with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..attention.agreed import choose_attention
from ..attention.choice import obstacle
from ..checkpoint.checks import check_average, check_same_codec
from ..checkpoint.folders import checkpoint_root
from ..checkpoint.load import load_weights
from ..checkpoint.saved import Saved, find_checkpoint
from ..codec.build import build_codec
from ..config.check import find_problems
from ..config.schema import Config, ParallelConfig
from ..errors import RunError, UserError
from ..model.init import load_released
from ..model.videogpt import VideoGPT
from ..objective.build import build_network, require_sampler
from ..platforms import Platform, activate, world
from ..platforms.together import from_rank_zero, raise_together


def load_model(
    source: Path, step: int | None = None, platform: str = "auto", average: bool = False
) -> tuple[VideoGPT, Config, Saved | None]:
    """The model of a run's newest checkpoint (or of `step`), whatever layout trained it, or of a Hugging Face folder,
    its configuration, and the checkpoint (None for a folder).

    Under torchrun it is tensor parallel over all processes.  Weights keep their precision on a GPU and become float32
    on a CPU.

    Args:
        source: a run's output folder, or a folder with config.json and safetensors.
        average: take the moving average of the weights (optimizer.ema_decay), which only runs have.

    Raises:
        ValueError: no such checkpoint, one of an objective that generates nothing, a folder that does not hold this
            model, or processes that cannot share its heads; one line, the same on all ranks.
    """
    device = _start(platform)
    # Rank 0 looks: where another rank sees the folder in another state, it must not go another way.
    if from_rank_zero(lambda: is_released(source), None, "looking for a model"):
        return _load_released(source, step, device, average)
    saved = find_checkpoint(source, step)
    require_sampler(saved.config)
    if average:
        check_average(saved)
    config = _prepare(saved.config, device)
    codec = build_codec(config.codec)
    check_same_codec(saved, codec)
    backend, _ = choose_attention(config, device)
    model = build_network(config, codec.channels, device, backend)
    load_weights(saved.path, [model], average)
    return model, config, saved


def is_released(source: Path) -> bool:
    """Whether it is a Hugging Face folder and no run."""
    return (source / "config.json").is_file() and not checkpoint_root(source).is_dir()


def _load_released(source: Path, step: int | None, device: Platform, average: bool) -> tuple[VideoGPT, Config, None]:
    if step is not None or average:
        raise RunError(
            f"{source}: a Hugging Face folder holds one set of weights; leave out --step and --weights average"
        )
    problem = ""
    try:
        config, weights = _open(source)
    except (UserError, OSError) as error:
        problem = str(error)
    raise_together(problem, None, "opening a model")
    config = _prepare(config, device)
    backend, _ = choose_attention(config, device)
    model = build_network(config, weights.channels, device, backend)
    load_released(model, config.model, weights.tensor)
    return model, config, None


def _open(source: Path) -> tuple[Config, Any]:
    """(configuration, what has `channels` and `tensor(entry)`) of a folder."""
    from ..convert import mapped
    from ..convert.folder import Folder
    from ..convert.ingest import is_stock, open_source
    from ..convert.settings import folder_config

    released = mapped.released_in(source)
    if released is not None:
        network = mapped.open_source(source, released, source / released.CODEC, {}, None, allow_extra=True)
        return network.config, network
    folder = Folder(source)
    if is_stock(folder):
        raise UserError(
            f"{source}: a stock Phi-3 model, which knows nothing of video; convert it "
            "(megatron-videogpt convert from-hf) and train it first"
        )
    config = folder_config(source)
    return config, open_source(folder, config.codec, None, None, allow_extra=True)


def _start(platform: str) -> Platform:
    """Join the processes that share the model."""
    device = activate(platform)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    world.start(device, ParallelConfig(tensor=world.world_size()))
    return device


def _prepare(config: Config, device: Platform) -> Config:
    """The configuration of a model on this device, split over all processes."""
    size = world.world_size()
    parallel = ParallelConfig(tensor=size)
    train = replace(config.train, precision="fp32") if device.name == "cpu" else config.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    wanted = config.attention.backend
    if wanted != "auto" and obstacle(wanted, device.device.type, dtype, config.model.head_dim):
        # The run was trained on another kind of device.
        wanted = "auto"
    config = replace(config, parallel=parallel, train=train, attention=replace(config.attention, backend=wanted))
    problems = [line for line in find_problems(config, None) if line.startswith("parallel.")]
    if problems:
        raise RunError(f"{size} processes share the model by its heads (tensor parallelism): {problems[0]}")
    return config
