"""What a continuation starts from: a video, an image or a physics scene as frames at the model's size, or no frame at
all; and what it is to show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..codec.base import Codec
from ..config.derived import frame_side, typical_frame
from ..config.schema import Config, SampleConfig
from ..data.bad import BadVideo, shown
from ..data.decode import probe, read_clip
from ..data.sources.facts import describe_scene
from ..data.sources.files import EXTENSIONS, walk
from ..data.sources.physics import render_scene
from ..data.video.container import Limits, limits_of
from ..errors import UserError
from .evaluate import pixel_frames
from .pictures import IMAGES, count_pictures, is_picture, read_pictures

IMAGE_FPS = 24.0  # an image has no rate: its continuation is played as an ordinary film's


@dataclass(frozen=True)
class Prompt:
    """Frames at the model's size, uint8 ``[., H, W, 3]``.  truth: what really followed, possibly shorter than the
    continuation, or None; label, text: what it is to show, each for models that take it.
    """

    name: str
    condition: np.ndarray
    truth: np.ndarray | None
    fps: float
    label: str = ""
    text: str = ""


@dataclass(frozen=True)
class Source:
    """Where a prompt comes from.  name: of its outputs; path: a video or an image; scene: kind and number of a physics
    scene instead; label, text: what it is to show; with neither path nor scene, from nothing.
    """

    name: str
    path: Path | None = None
    scene: tuple[str, int] | None = None
    label: str = ""
    text: str = ""

    def __str__(self) -> str:
        if self.scene:
            return f"{self.scene[0]}/{self.scene[1]}"
        return shown(str(self.path)) if self.path is not None else self.label or self.text


def find_sources(
    paths: Sequence[Path],
    scenes: Sequence[tuple[str, int]] = (),
    output: Path | None = None,
    labels: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> list[Source]:
    """Files as given, folders as the videos and images in them (searched recursively, sorted), then scenes; without
    any of these, one source for each label or text.

    Each is named after its file, as `shown`, or what it shows, with a number where names clash.  output: folder of
    results, which is not searched; labels, texts: a single one is for all inputs.

    Raises:
        ValueError: a folder without videos and images, one line.
    """
    found: list[Path] = []
    for path in paths:
        found += _files(path, output) if path.is_dir() else [path]
    sources = [Source(shown(path.stem), path) for path in found] + [
        Source(f"{kind}_{number}", scene=(kind, number)) for kind, number in scenes
    ]
    if not sources:
        sources = [Source(_slug(label), label=label) for label in labels]
        sources += [Source(_slug(text), text=text) for text in texts]
    elif labels or texts:
        sources = [replace(source, label="".join(labels[:1]), text="".join(texts[:1])) for source in sources]
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


def _slug(text: str) -> str:
    """What it shows, as the beginning of a file's name."""
    return re.sub(r"\W+", "_", text).strip("_")[:60] or "video"


def _files(folder: Path, output: Path | None) -> list[Path]:
    known = IMAGES | EXTENSIONS
    files = list(walk(folder, known))
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
        history: latent frames given, see `plan`; a single picture is one whatever this is.
        interval: use every so many-th frame.

    Raises:
        ValueError: not readable, over the limits of `config.data`, or too short, in one line that names it.
    """
    if source.scene is not None:
        return _scene(source, source.scene, config, codec, history, interval)
    if source.path is None:
        return replace(_nothing(source.name, config, interval), label=source.label, text=source.text)
    try:
        prompt = _file(source.name, source.path, config, codec, history, interval)
        return replace(prompt, label=source.label, text=source.text)
    except BadVideo as error:
        raise UserError(str(error)) from error


def check_readable(path: Path) -> None:
    """ValueError, one line, when a video or an image cannot be read at all, whatever the limits of a model are."""
    try:
        _look(path, Limits())
    except BadVideo as error:
        raise UserError(str(error)) from error


def _look(path: Path, limits: Limits) -> tuple[int, float]:
    """Frames, and of a video how many a second; of a picture, which has no rate until it is read, 0."""
    if is_picture(path):
        return count_pictures(path, limits), 0.0
    info = probe(path, limits)
    return info.frames, info.fps


def _file(name: str, path: Path, config: Config, codec: Codec, history: int | None, interval: int) -> Prompt:
    side, limits = frame_side(config), limits_of(config.data)
    multiple = math.lcm(config.data.size_multiple, codec.spatial_stride * config.model.patch_size)
    picture = is_picture(path)
    count, fps = _look(path, limits)
    if picture and count == 1:
        return Prompt(name, read_pictures(path, [0], side, multiple, limits)[0], None, IMAGE_FPS / interval)
    try:
        start, first, end = plan((count - 1) // interval + 1, history, config.sample, codec)
    except UserError as error:
        raise BadVideo(path, str(error), "too_short") from error
    wanted = [index * interval for index in range(start, end)]
    if picture:
        frames, fps = read_pictures(path, wanted, side, multiple, limits)
    else:
        frames = read_clip(path, wanted, side, multiple, limits)
    first -= start
    return Prompt(name, frames[:first], frames[first:] if len(frames) > first else None, fps / interval)


def _nothing(name: str, config: Config, interval: int) -> Prompt:
    """No frame, of the size that the model was trained with."""
    fps = config.data.physics.fps if config.data.source == "physics" else IMAGE_FPS
    return Prompt(name, np.empty((0, *typical_frame(config), 3), np.uint8), None, fps / interval)


def _scene(
    source: Source, scene: tuple[str, int], config: Config, codec: Codec, history: int | None, interval: int
) -> Prompt:
    """A scene says itself what it shows, where the command does not."""
    settings, (kind, number) = config.sample, scene
    given = _given(settings) if history is None else history
    first = pixel_frames(codec, given)
    physics = replace(config.data.physics, scenes=(kind,))
    frames = render_scene(physics, number, pixel_frames(codec, given + sum(settings.clips)), interval)
    label, text = source.label, source.text
    if not label and not text:
        facts = describe_scene(physics, number)
        label, text = facts.name, facts.caption
    return Prompt(source.name, frames[:first], frames[first:], physics.fps / interval, label, text)
