"""One prediction of a run's megatron-core model and of the stand-alone model of a folder, on the same random input, to
be compared.

Both compute in float32, which holds bf16 weights exactly: in bf16, roundings alone set two sound models apart, by 4% of
the largest value with 8 layers of spread weights and by 26% with 32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..condition.folder import text_width
from ..condition.options import ConditionConfig
from ..config.schema import Config, ModelConfig, ParallelConfig
from ..errors import UserError
from ..model.patches import unpatchify
from ..model.prefix import no_prefix
from ..objective.flow_rows import Sequence, assemble
from ..sequence.layout import layout, training_shape
from .conditions import condition_of
from .folder import Folder
from .released import model_of
from .standalone import hub_config

LIMIT = 2e-5
"""Largest deviation, as a fraction of the largest value."""
CLIPS, GRID = (2, 1, 2), (2, 3)


def random_input(model: ModelConfig, channels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents ``[N, C, h, w]``, clean ones ``[M, C, h, w]`` and timesteps ``[N]`` of `CLIPS` in the training
    layout.
    """
    draws = torch.Generator().manual_seed(seed)
    size = channels, GRID[0] * model.patch_size, GRID[1] * model.patch_size
    count = sum(CLIPS)
    noisy, clean = torch.randn(count, *size, generator=draws), torch.randn(count - CLIPS[-1], *size, generator=draws)
    return noisy, clean, torch.rand(len(CLIPS), generator=draws).repeat_interleave(torch.tensor(CLIPS))


def random_condition(condition: ConditionConfig, seed: int = 0) -> Tensor | None:
    """A class int64 ``[1]``, or features of a text of two tokens ``[2, E]``; None for a model without a condition."""
    draws = torch.Generator().manual_seed(seed)
    if condition.kind == "class":
        return torch.randint(len(condition.classes), (1,), generator=draws)
    return torch.randn(2, text_width(condition), generator=draws) if condition.kind == "text" else None


@torch.no_grad()
def of_run(path: Path, config: Config, channels: int, average: bool = False, tensor: int = 1) -> Tensor:
    """What a checkpoint predicts, float32 ``[N, C, h, w]``; tensor: tensor parallel size."""
    from ..checkpoint.load import load_weights
    from ..objective.build import build_network
    from ..platforms import activate, world

    platform = activate("cpu")
    config = replace(config, parallel=ParallelConfig(tensor=tensor), train=replace(config.train, precision="fp32"))
    world.start(platform, config.parallel)
    model = build_network(config, channels, platform, "reference")
    load_weights(path, [model], average)
    noisy, clean, t = random_input(config.model, channels)
    told = random_condition(config.condition)
    shape = training_shape(CLIPS, GRID, 0 if told is None else len(told))
    sequence = Sequence(layout(shape), noisy, clean, t, prefix=told)
    inputs = assemble([sequence], config.model.patch_size, config.model.position_table_size, 1, no_prefix(config))
    return unpatchify(model.eval()(inputs), len(noisy), GRID, config.model.patch_size)


@torch.no_grad()
def of_folder(folder: Path, hint_ids: tuple[int, int, int]) -> Tensor:
    """The same prediction of the stand-alone model, filled from a folder's tensors."""
    from ..hub.common.configuration_videogpt import VideoGPTConfig
    from ..hub.next_clip.modeling_videogpt import VideoGPTModel

    opened = Folder(folder)
    config, channels = model_of(opened)
    vocabulary = opened.shape("llm.embed_tokens.weight")[0]
    condition = condition_of(opened.config, f"{folder}/config.json")
    settings = VideoGPTConfig(**hub_config(config, channels, hint_ids, vocabulary, opened.config, condition=condition))
    with torch.device("meta"):
        model = VideoGPTModel(settings)
    model.load_state_dict({key: opened.tensor(key).float() for key in model.state_dict()}, assign=True)
    noisy, clean, t = random_input(config, channels)
    told = random_condition(condition)
    told = None if told is None else told[None]
    return model.eval()(noisy[None], t[None], clean[None], list(CLIPS), condition=told).sample[0]


def relative_error(ours: Tensor, other: Tensor) -> float:
    """Largest deviation as a fraction of the largest value; ValueError for predictions that are all zero, which say
    nothing.
    """
    largest = float(other.abs().max())
    if not largest > 0:
        raise UserError(
            "--verify: the model predicts nothing but zeros, as one that was never trained does; leave out --verify"
        )
    return float((ours - other).abs().max()) / largest
