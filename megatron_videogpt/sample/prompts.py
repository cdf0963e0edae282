"""What a continuation starts from: a video, an image or a physics scene as frames at the model's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..codec.base import Codec
from ..config.derived import frame_side
from ..config.schema import Config, SampleConfig
from ..data.bad import BadVideo
from ..data.sources.files import EXTENSIONS
from ..data.sources.physics import render_scene
from ..data.video.container import Limits, identity, limits_of
from ..data.video.decode import probe, read_clip, resize_frames
from ..errors import UserError
from .evaluate import pixel_frames

IMAGES = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
IMAGE_FPS = 24.0  # an image has no rate: its continuation is played as an ordinary film's


@dataclass(frozen=True)
class Prompt:
    """Frames at the model's size, uint8 ``[., H, W, 3]``.  truth: what really followed, possibly shorter than the
    continuation, or None.
    """

    name: str
    condition: np.ndarray
    truth: np.ndarray | None
    fps: float


@dataclass(frozen=True)
class Source:
    """Where a prompt comes from.  name: of its outputs; path: a video or an image; scene: kind and number of a physics
    scene instead.
    """

    name: str
    path: Path | None = None
    scene: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.scene[0]}/{self.scene[1]}" if self.scene else str(self.path)

    @property
    def is_image(self) -> bool:
        """Whether it is a single picture, by its name."""
        return self.path is not None and self.path.suffix.lower() in IMAGES


def find_sources(
    paths: Sequence[Path], scenes: Sequence[tuple[str, int]] = (), output: Path | None = None
) -> list[Source]:
    """Files as given, folders as the videos and images in them (searched recursively, sorted), then scenes.

    Each is named after its file, with a number where names clash.  output: folder of results, which is not searched.

    Raises:
        ValueError: a folder without videos and images, one line.
    """
    found: list[Path] = []
    for path in paths:
        found += _files(path, output) if path.is_dir() else [path]
    sources = [Source(path.stem, path) for path in found] + [
        Source(f"{kind}_{number}", scene=(kind, number)) for kind, number in scenes
    ]
    # The comparison of a folder's results has that name.
    used = {"metrics"}
    named = []
    for source in sources:
        name, number = source.name, 1
        # Some file systems take a.mp4 and A.mp4 for the same.
        while name.casefold() in used:
            number += 1
            name = f"{source.name}_{number}"
        used.add(name.casefold())
        named.append(replace(source, name=name))
    return named


def _files(folder: Path, output: Path | None) -> list[Path]:
    known = IMAGES | EXTENSIONS
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    results = output.resolve() if output is not None else None
    if results is not None and results != folder.resolve():
        files = [path for path in files if results not in path.resolve().parents]
    if not files:
        raise UserError(f"{folder}: no video or image in it (looked for {', '.join(sorted(known))})")
    return files


def plan(frames: int, history: int | None, settings: SampleConfig, codec: Codec) -> tuple[int, int, int]:
    """Where in a video of so many frames the condition starts, where the truth starts, and where that ends (equal when
    there is none).

    history: latent frames asked for, from the start of the video; None takes those before the last ``sum(clips)``, see
    `_given`.
    """
    clips = sum(settings.clips)
    if history is not None:
        first = pixel_frames(codec, history)
        if first > frames:
            raise UserError(
                f"--history {history} needs {first} frames, the video has {frames} at this interval; use a "
                "smaller --history or --interval"
            )
        return 0, first, min(frames, pixel_frames(codec, history + clips))
    latent = (frames - 1) // codec.temporal_stride + 1
    known = latent > clips
    given = min(_given(settings), latent - clips if known else latent)
    first, last = (
        pixel_frames(codec, given),
        pixel_frames(codec, given + clips) if known else pixel_frames(codec, given),
    )
    return frames - last, frames - last + first, frames


def _given(settings: SampleConfig) -> int:
    """Latent frames given where the command does not say: at least one, at most what the window holds beside a clip."""
    return max(1, min(settings.history, settings.window - settings.clips[0]))


def read_prompt(source: Source, config: Config, codec: Codec, history: int | None = None, interval: int = 1) -> Prompt:
    """Decode or render the frames that are needed, at the model's size.

    Args:
        config: of the model, with the settings to sample with in `config.sample`.
        history: latent frames given, see `plan`; an image is one whatever this is.
        interval: use every so many-th frame.

    Raises:
        ValueError: not readable, over the limits of `config.data`, or too short, in one line that names it.
    """
    if source.scene is not None:
        return _scene(source.name, source.scene, config, codec, history, interval)
    assert source.path is not None
    side, limits = frame_side(config), limits_of(config.data)
    multiple = math.lcm(config.data.size_multiple, codec.spatial_stride * config.model.patch_size)
    try:
        if source.is_image:
            return Prompt(
                source.name,
                resize_frames(_picture(source.path, limits)[None], side, multiple),
                None,
                IMAGE_FPS / interval,
            )
        info = probe(source.path, limits)
        try:
            start, first, end = plan((info.frames - 1) // interval + 1, history, config.sample, codec)
        except UserError as error:
            raise BadVideo(source.path, str(error), "too_short") from error
        frames = read_clip(source.path, [index * interval for index in range(start, end)], side, multiple, limits)
    except BadVideo as error:
        raise UserError(str(error)) from error
    first -= start
    return Prompt(source.name, frames[:first], frames[first:] if len(frames) > first else None, info.fps / interval)


def _scene(
    name: str, scene: tuple[str, int], config: Config, codec: Codec, history: int | None, interval: int
) -> Prompt:
    settings, (kind, number) = config.sample, scene
    given = _given(settings) if history is None else history
    first = pixel_frames(codec, given)
    physics = replace(config.data.physics, scenes=(kind,))
    frames = render_scene(physics, number, pixel_frames(codec, given + sum(settings.clips)), interval)
    return Prompt(name, frames[:first], frames[first:], physics.fps / interval)


def _picture(path: Path, limits: Limits) -> np.ndarray:
    """uint8 ``[H, W, 3]``, upright; BadVideo when it is no picture or larger than the limits."""
    identity(path, limits)
    try:
        with Image.open(path) as image:
            if image.width * image.height > limits.pixels:
                raise BadVideo(
                    path,
                    f"{image.width}x{image.height} pixels, more than data.max_megapixels={limits.pixels / 1e6:g}",
                    "too_large",
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Pillow cuts 16 bits off at 255 instead of scaling them.
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) // 256).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise BadVideo(path, "not a readable image") from error
    # Pillow's readers raise these over damaged files.
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, Image.DecompressionBombError) as error:
        raise BadVideo(path, f"not a readable image ({error})") from error
