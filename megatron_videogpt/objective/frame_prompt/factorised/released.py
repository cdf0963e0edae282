"""A published network as conversion sees it: its `config.json` as a run's configuration and back, its tensors, and what
it becomes of Open-Sora 1.0's (reference README section 2).  `objective/released.py` says what the names mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....codec.geometry import expected_geometry
from ....condition.options import NONE, ConditionConfig
from ....config.derived import typical_frame
from ....config.schema import Config, ModelConfig, SampleConfig
from ....errors import UserError
from ....model.parameters import Parameter
from ...released import VAE as CODEC
from ...released import Start
from ..options import NAME, FramePromptOptions
from .card import card
from .guess import guessed, started
from .options import FACTORISED, FactorisedOptions, variant_of_run
from .published import COMPUTED, UNREAD, computed_tables, model_of, variant_of
from .published import settings_of as network_settings
from .settings import checked
from .variant import CYCLIC, FULL, Variant, prompt_lengths

__all__ = ["CODEC", "COMPUTED", "card", "guessed"]

MODEL_TYPE = "frame_prompt"
AUTO = {
    "architectures": ["FramePromptModel"],
    "auto_map": {
        "AutoConfig": "configuration_frameprompt.FramePromptConfig",
        "AutoModel": "modeling_frameprompt.FramePromptModel",
    },
}
HUB = "frame_prompt"
START = "blocks.0.attn_temp."
ENTRY = ""
BUFFERS = (*COMPUTED, *UNREAD)
STARTS = {
    "open-sora": Start(started, ("attn_cf.", "attn_temp_pre_merge."), ("cross_attn.", "y_embedder.", *BUFFERS)),
}
GUIDANCE, STEPS, INTERVALS = 7.5, 100, {False: (1, 1), True: (3, 3)}
"""Of the published sampling, guidance by a text alone; which frames training takes without texts and with (reference
README section 9).
"""


def channels_of(settings: Mapping[str, Any]) -> int:
    """See `Released`."""
    return int(settings["in_channels"])


def pieces(entry: Parameter, model: ModelConfig, channels: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """See `Released`: each is a published tensor."""
    return ((entry.hf, entry.shape(model, channels)),)


def settings_of(config: Config, channels: int) -> dict[str, Any]:
    """See `Released`."""
    variant, stride = variant_of_run(config), expected_geometry(config.codec).spatial_stride
    height, width = _frame(config)
    size = height // stride, width // stride
    found = network_settings(config.model, variant, channels, size, config.condition.dropout)
    if not variant.text_width:
        del found["class_dropout_prob"]
    return {"model_type": MODEL_TYPE, **found, "chunk": config.objective.chunk}


def _frame(config: Config) -> tuple[int, int]:
    """(height, width) in pixels of what a run is trained on."""
    square = config.data.source != "physics" and config.data.max_aspect == 1
    return (config.data.longest_side, config.data.longest_side) if square else typical_frame(config)


def config_of(settings: Mapping[str, Any], config: Config, where: str) -> Config:
    """See `Released`: with its model, objective and condition, and what samples and is sampled with where the
    configuration is none of this network.
    """
    settings = checked(settings, where)
    variant = variant_of(settings, where)
    known = config.objective.name == NAME and config.objective.network == FACTORISED
    objective = _objective(settings, variant, config.objective if known else FramePromptOptions(), where)
    side = max(settings["input_size"]) // settings["patch_size"][-1]
    table = max(side, config.model.position_table_size)
    model = replace(model_of(settings), init_std=config.model.init_std, position_table_size=table)
    condition = _condition(settings, config.condition)
    config = replace(config, model=model, objective=objective, condition=condition)
    return config if known else _as_published(settings, config)


def _objective(
    settings: Mapping[str, Any], variant: Variant, options: FramePromptOptions, where: str
) -> FramePromptOptions:
    """The network's options; prompts as published where those that there are belong to other chunks."""
    chunk, places = settings["chunk"], settings["max_tpe_len"]
    prompts = options.prompts
    if options.network != FACTORISED or options.chunk != chunk or max(prompts) + chunk > places:
        lengths = [length for length in prompt_lengths(places, chunk, 1) if length + chunk <= places]
        prompts = tuple(length for length in lengths if length == 1 or length >= variant.enhance_frames)
    if not prompts:
        raise UserError(
            f"{where}: max_tpe_len is {places}, which has no room for a prompt beside a chunk of {chunk} frames; say "
            f"how many a chunk has, in config.json or by --published chunk={max(1, places // 2)}"
        )
    of_network: FactorisedOptions = replace(
        options.factorised,
        enhance=variant.enhance,
        enhance_frames=variant.enhance_frames or options.factorised.enhance_frames,
        mask_channel=variant.mask_channel,
        time=variant.time,
        positions=variant.positions,
        places=places,
        space_scale=float(variant.space_scale),
        time_scale=float(variant.time_scale),
    )
    return replace(options, network=FACTORISED, chunk=chunk, prompts=prompts, factorised=of_network)


def _condition(settings: Mapping[str, Any], condition: ConditionConfig) -> ConditionConfig:
    """Texts of the encoder that the configuration names, else T5's as published; where its folder lies is for whoever
    gives texts to say.
    """
    width, tokens = settings["caption_channels"], settings["model_max_length"]
    if not width:
        return condition if condition.kind == "none" else NONE
    encoder = condition.encoder if condition.kind == "text" else "t5"
    return replace(
        condition,
        kind="text",
        encoder=encoder,
        width=width,
        max_tokens=tokens,
        dropout=float(settings["class_dropout_prob"]),
    )


def _as_published(settings: Mapping[str, Any], config: Config) -> Config:
    """Clips, their size, and how the published networks are sampled."""
    objective, (rows, columns) = config.objective, settings["input_size"]
    longest, texts = max(objective.prompts) + objective.chunk, config.condition.kind == "text"
    options = objective.factorised
    cached = options.time != FULL
    pixels = max(rows, columns) * expected_geometry(config.codec).spatial_stride
    data = replace(
        config.data,
        frames=longest,
        frame_interval=INTERVALS[texts],
        clips=(1, 1),
        longest_side=pixels,
        physics=replace(config.data.physics, size=pixels),
        max_aspect=1.0 if rows == columns else config.data.max_aspect,
    )
    sample = SampleConfig(
        history=1,
        clips=(objective.chunk,),
        window=longest,
        steps=STEPS,
        guidance=GUIDANCE if texts else 1.0,
        cache=cached,
        # Exported folders know no other; fixed positions come to an end.
        window_end="keep" if cached and options.positions == CYCLIC else "recompute",
    )
    return replace(config, data=data, sample=sample)


def buffers(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """See `Released`: tables of positions, and zeros for what nothing reads."""
    settings = checked(settings, "config.json")
    rows, columns = settings["input_size"]
    tables = computed_tables(model_of(settings), variant_of(settings, "config.json"), (rows, columns))
    return tables | {key: torch.zeros(settings["in_channels"], rows, columns) for key in UNREAD}
