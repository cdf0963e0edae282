"""The scenes that a model is measured on, with their truth, and the simple guesses beside the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymunk
import torch

from ..codec.base import Codec
from ..codec.geometry import Geometry
from ..config.schema import Config, SampleConfig
from ..config.schema_data import PhysicsConfig
from ..data.sources.physics import build_scene, simulate_scene
from ..data.sources.scenes import Colour
from ..data.video.pictures import to_model_range, to_pixels
from ..errors import UserError
from ..sample.evaluate import linear_extrapolation, pixel_frames
from ..sample.prompts import Prompt, Source, read_prompt

SMALLEST_SIDE = 48  # pixels: below, the tiny codec's own round trip of dominoes is not found


@dataclass(frozen=True)
class Scene:
    """A scene and its truth, from its beginning.

    prompt: the given frames, and what the model is told; pictures: uint8 ``[F, H, W, 3]``; masks: bool ``[F, bodies, H,
    W]``; colours: of the bodies; discs: whether they are discs, else boxes.
    """

    kind: str
    prompt: Prompt
    pictures: np.ndarray
    masks: np.ndarray
    colours: tuple[Colour, ...]
    discs: bool

    @property
    def given(self) -> int:
        """Frames given."""
        return len(self.prompt.condition)

    @property
    def truth(self) -> np.ndarray:
        """What follows the given frames, uint8 ``[., H, W, 3]``."""
        return self.pictures[self.given :]


def check_measurable(config: Config, codec: Geometry, size: int | None = None) -> PhysicsConfig:
    """What scenes to measure a model of this configuration on; UserError, one line, where the meter does not know them
    or the model does not take them.

    size: side of the frames in pixels, instead of that of training.
    """
    physics = config.data.physics
    if config.data.source != "physics" or physics.difficulty != 0:
        trained = f"data.source = {config.data.source!r}"
        trained += f", difficulty {physics.difficulty}" if config.data.source == "physics" else ""
        raise UserError(f"the model was trained on {trained}; only generated scenes of difficulty 0 can be measured")
    physics = physics if size is None else replace(physics, size=size)
    patch = codec.spatial_stride * config.model.patch_size
    multiple, most = math.lcm(16, patch), patch * config.model.position_table_size
    if physics.size % multiple or not SMALLEST_SIDE <= physics.size <= most:
        raise UserError(
            f"frames of {physics.size}x{physics.size} pixels cannot be measured; give --size N, a multiple of "
            f"{multiple} from {SMALLEST_SIDE} to {most}"
        )
    return physics


def read_scenes(config: Config, codec: Codec, count: int, history: int, interval: int) -> Iterator[Scene]:
    """The first `count` scenes of every kind, those of `sample --scene KIND/NUMBER`: KIND/0, KIND/1, ...

    Training and validation draw their scenes by keys of 63 bits made from the seed, which these numbers are not among.

    Args:
        config: of the model; its `data.physics` says the kinds and the size, its `sample.clips` how long the truth is.
        history: latent frames given.
        interval: simulated frames between two frames.
    """
    frames = pixel_frames(codec, history + sum(config.sample.clips))
    for kind in config.data.physics.kinds:
        physics = replace(config.data.physics, scenes=(kind,))
        for number in range(count):
            prompt = read_prompt(Source(f"{kind}/{number}", scene=(kind, number)), config, codec, history, interval)
            pictures, masks = simulate_scene(physics, number, frames, interval)
            _, world = build_scene(physics, number)
            colours = tuple(body.colour for body in world.bodies)
            discs = all(isinstance(body.shape, pymunk.Circle) for body in world.bodies)
            yield Scene(kind, prompt, pictures, masks, colours, discs)


def repeated(scene: Scene) -> np.ndarray:
    """The last given frame as long as the truth: uint8 ``[., H, W, 3]``."""
    return np.repeat(scene.prompt.condition[-1:], len(scene.truth), axis=0)


def extrapolated(scene: Scene) -> np.ndarray:
    """The last two given frames drawn on, see `linear_extrapolation`: uint8 ``[., H, W, 3]``."""
    guess = linear_extrapolation(scene.pictures, scene.given, len(scene.truth))
    return (255 * guess).round().to(torch.uint8).numpy()


@torch.no_grad()
def round_trip(scene: Scene, codec: Codec) -> np.ndarray:
    """The truth, encoded and decoded again with the frames before it: uint8 ``[., H, W, 3]``.  What a model that knows
    everything would show.
    """
    latents, _ = codec.encode(to_model_range(scene.pictures).to(codec.device))
    return to_pixels(codec.decode(latents))[scene.given :]


def fill(clips: Sequence[int], frames: int) -> tuple[int, ...]:
    """Clips over and over, up to so many frames; the last one is cut where they end.  (2, 3), 8 -> (2, 3, 2, 1)."""
    filled: list[int] = []
    while sum(filled) < frames:
        filled.append(min(clips[len(filled) % len(clips)], frames - sum(filled)))
    return tuple(filled)


def given_frames(settings: SampleConfig, history: int | None) -> int:
    """Latent frames given: as asked for, or as many as the window holds beside the first clip."""
    return max(1, min(settings.history, settings.window - settings.clips[0])) if history is None else history
