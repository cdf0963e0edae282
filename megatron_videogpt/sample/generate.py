"""Continuing prompts with a trained model: several videos share a row, clips come out as they are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec.base import Codec
from ..codec.build import build_codec
from ..condition.build import build_encoder
from ..config.schema import Config, SampleConfig
from ..data.conditioning import UNCONDITIONAL, Conditioning
from ..data.video.pictures import to_model_range, to_pixels
from ..errors import RunError, UserError
from ..objective.base import Sampler, Watch
from ..platforms import activate
from .evaluate import decode_continuation
from .prompts import Prompt


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample.

    sampler: `sampler(settings)` -> what continues videos, with its cache as the settings have it; device: where
    histories and codec are; step: of the checkpoint, None for a Hugging Face folder; conditioning: how labels and texts
    become what it takes.
    """

    sampler: Callable[[SampleConfig], Sampler]
    config: Config
    codec: Codec
    device: torch.device
    step: int | None = None
    conditioning: Conditioning = UNCONDITIONAL


@dataclass(frozen=True)
class Clip:
    """A finished clip of one video: latents ``[G, C, h, w]`` on the CPU, frames uint8 ``[F, H, W, 3]``.

    A codec that joins frames in time needs the whole video to decode: there the last clip brings all frames, and F is 0
    before it.
    """

    latents: Tensor
    frames: np.ndarray


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt: latents ``[sum(clips), C, h, w]``, frames uint8 ``[F, H, W, 3]``; seconds: its share of
    its row's time.
    """

    prompt: Prompt
    latents: Tensor
    frames: np.ndarray
    seconds: float


def load(
    source: Path,
    step: int | None = None,
    average: bool = False,
    text_encoder: str = "",
    texts: bool = True,
    platform: str = "auto",
) -> Model:
    """The model of a training run (its newest checkpoint, or that of `step`) or of a Hugging Face folder, with its
    codec, and its text encoder where texts are wanted.

    Under torchrun every process loads its tensor parallel part.  average: the moving average of a run's weights;
    text_encoder: folder of the text encoder instead of the configuration's; texts: False leaves it out where there is
    none; platform: as `platforms.activate` takes it.  Raises ValueError in one line for what cannot be loaded.
    """
    # Before anything imports megatron-core, which looks for its device as it is imported.
    device = activate(platform).device
    from ..checkpoint.checks import other_encoder
    from ..objective.build import build_sampler
    from .load import load_model

    network, config, saved = load_model(source, step, platform, average)
    codec = build_codec(config.codec).to(device, torch.float32)
    options = config.condition
    options = replace(options, encoder_path=text_encoder) if text_encoder else options
    usable = texts or options.encoder == "words" or (bool(options.encoder_path) and Path(options.encoder_path).is_dir())
    encoder = build_encoder(options).to(device) if options.kind == "text" and usable else None
    other = other_encoder(saved, encoder.fingerprint) if saved is not None and encoder is not None else []
    if other:
        raise RunError(f"{source}: {other[0]}; use the encoder that it was trained with (--text-encoder)")
    return Model(
        lambda settings: build_sampler([network], replace(config, sample=settings), device),
        config,
        codec,
        device,
        None if saved is None else saved.state["step"],
        Conditioning(options, encoder),
    )


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    settings: SampleConfig,
    seed: int,
    watch: Watch | None = None,
    batch: int = 4,
) -> Iterator[Continuation]:
    """Continue every prompt by the clips of `settings`, `batch` of them at a time in one row, in order.

    A prompt's noise depends on the seed alone: it is continued the same way alone, among others and under any name, up
    to float rounding.  The settings count as they are; `model.config.sample` does not.  Every process of a tensor
    parallel group must call this alike.
    """
    sampler = model.sampler(settings)
    for start in range(0, len(prompts), batch):
        row = prompts[start : start + batch]
        began = time.perf_counter()
        shown = conditions_of(model, row)
        clips = list(continue_row(model, sampler, encode(model, row), settings, seed, watch, conditions=shown))
        seconds = (time.perf_counter() - began) / len(row)
        for prompt, parts in zip(row, zip(*clips)):
            yield Continuation(
                prompt,
                torch.cat([part.latents for part in parts]),
                np.concatenate([part.frames for part in parts]),
                seconds,
            )


@torch.no_grad()
def encode(model: Model, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Histories: per prompt the latents ``[H, C, h, w]`` of its condition, on the model's device."""
    codec, histories = model.codec, []
    for prompt in prompts:
        frames, height, width, _ = prompt.condition.shape
        size = (codec.channels, height // codec.spatial_stride, width // codec.spatial_stride)
        nothing = torch.empty(0, *size, device=model.device)
        histories.append(codec.encode(to_model_range(prompt.condition).to(model.device))[0] if frames else nothing)
    return histories


def conditions_of(model: Model, prompts: Sequence[Prompt]) -> list[Tensor | None]:
    """Per prompt what the model takes of what it is to show (`Sampler.rollout`), on its device; None for nothing.

    Raises UserError, one line, for a class that is not known, or a text without an encoder.
    """
    kind, found = model.conditioning.options.kind, list[Tensor | None]()
    for prompt in prompts:
        said = {"class": prompt.label, "text": prompt.text}.get(kind, "")
        if said and kind == "text" and model.conditioning.encoder is None:
            raise UserError("the model takes texts, and its text encoder is not known here; give --text-encoder FOLDER")
        values = model.conditioning.values(prompt.label, prompt.text) if said else None
        found.append(None if values is None else torch.from_numpy(values).to(model.device))
    return found


@torch.no_grad()
def continue_row(
    model: Model,
    sampler: Sampler,
    histories: list[Tensor],
    settings: SampleConfig,
    seed: int,
    watch: Watch | None = None,
    decode: bool = True,
    conditions: list[Tensor | None] | None = None,
) -> Iterator[list[Clip]]:
    """Continue several videos together; yields per clip one `Clip` for each of them.

    Holds a window of latents a video however long the rollout is, but for codecs that join frames in time: those keep
    all latents to decode them at the end.

    Args:
        histories: per video ``[H, C, h, w]``, sizes and lengths may differ.
        decode: without it, frames stay empty: one process of a tensor parallel group is enough to make pictures.
        conditions: per video, from `conditions_of`.
    """
    joins = model.codec.temporal_stride > 1
    waiting: list[list[Tensor]] = [[] for _ in histories]
    # Every video draws the noise of number 0, so that neither its place among others nor its name matters.
    keys = [0] * len(histories)
    for number, latents in enumerate(sampler.rollout(histories, settings, keys, seed, conditions, watch), 1):
        clips = []
        for history, new, parts in zip(histories, latents, waiting):
            ready = decode and (not joins or number == len(settings.clips))
            if decode and joins:
                parts.append(new)
            stride, (height, width) = model.codec.spatial_stride, new.shape[2:]
            frames = np.empty((0, stride * height, stride * width, 3), np.uint8)
            if ready:
                frames = to_pixels(decode_continuation(model.codec, history, torch.cat(parts) if joins else new))
            clips.append(Clip(new.cpu(), frames))
        yield clips
