"""One continuation for the page, without anything of the page: bounds on what may be asked for, the files, and a line
about them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config.load import ConfigError
from ..config.schema import Config, SampleConfig
from ..config.schema_data import SCENES
from ..config.sections import not_sampled_with
from ..errors import UserError
from ..sample.generate import Model, conditions_of, continue_row, encode
from ..sample.options import SETTINGS, resolve
from ..sample.output import Output
from ..sample.prompts import Prompt, Source, read_prompt

MOST_CLIPS, MOST_FRAMES, MOST_STEPS = (
    30,
    480,
    200,
)  # clips, new latent frames of all clips together, denoising steps per clip
GUIDANCE = (1.0, 10.0)
TEMPERATURE = (0.0, 2.0)
LARGEST_MB = 200  # of an uploaded file, in 10^6 bytes
LONGEST = 100_000  # frames of an uploaded video
LARGEST_NUMBER = 2**31 - 1  # of seeds and scenes

OPTIONS = {
    "a smaller --history or --interval": "fewer frames given, or a smaller N for every N-th frame",
    "--history": "frames given:",
}
"""How the page names what messages call by the command's options."""

Tell = Callable[[float, str], None]
"""Told the share that is done and what to show about it."""


@dataclass(frozen=True)
class Request:
    """What the page asks for; numbers are not checked yet, and None where a field was left empty.

    Attributes:
        path: the uploaded video or image, or None for the scene (kind, number) of the physics generator.
        clips: how many new clips, of `frames` latent frames each.
        given: latent frames given, from the video's start; 0 gives those before the last ones, which serve as ground
            truth.
        interval: use every so many-th frame.
        shown: a class or a text, for models that take one; empty for none, or what a scene says of itself.
        temperature: of models that draw tokens, which go neither by steps nor by guidance.
    """

    path: Path | None
    scene: tuple[str, float | None]
    clips: float | None
    frames: float | None
    given: float | None
    interval: float | None
    steps: float | None
    guidance: float | None
    seed: float | None
    shown: str = ""
    temperature: float | None = None


@dataclass(frozen=True)
class Result:
    """Files, and what to say about them."""

    video: Path
    sheet: Path
    text: str


def most_frames(config: Config) -> int:
    """Latent frames of the longest clip: the window must hold one more."""
    return max(1, config.sample.window - 1)


def continue_one(model: Model, request: Request, folder: Path, tell: Tell) -> Result:
    """Continue a clip and write mp4, contact sheet and report into a new folder inside `folder`.

    Raises:
        ValueError: what was asked for cannot be done, one line in the words of the page.
    """
    settings, given, interval, seed = _settings(model.config, request)
    prompt = _read(model, request, settings, given, interval)
    if request.shown.strip():
        prompt = replace(prompt, label=request.shown.strip(), text=request.shown.strip())
    base = Path(tempfile.mkdtemp(dir=folder)) / f"{prompt.name}_continued"
    started, total = time.perf_counter(), sum(settings.clips)

    done = 0.0

    def watch(frames: float, tokens: int) -> None:
        nonlocal done
        done += frames
        tell(done / total, f"{done:.1f} of {total} frames, {done / (time.perf_counter() - started):.2f} frames/s")

    history = encode(model, [prompt])
    with Output(base, ("mp4", "png"), prompt, history[0], total * model.codec.temporal_stride) as output:
        told = conditions_of(model, [prompt])
        for clips in continue_row(model, model.sampler(settings), history, settings, seed, watch, conditions=told):
            output.append(clips[0])
        seconds = time.perf_counter() - started
        output.finish(
            {
                "input": prompt.name,
                "settings": {**asdict(settings), "given": len(prompt.condition), "interval": interval, "seed": seed},
            }
        )
    text = (
        f"{len(prompt.condition)} frames given, {output.count} generated in {seconds:.1f} s "
        f"({output.count / seconds:.2f} frames/s)\n{output.describe()}"
    )
    return Result(output.paths["mp4"], output.paths["png"], text)


def _settings(config: Config, request: Request) -> tuple[SampleConfig, int | None, int, int]:
    """The model's settings with the page's on top, frames given, interval and seed."""
    clips, frames = (
        _whole("clips", request.clips, 1, MOST_CLIPS),
        _whole("frames per clip", request.frames, 1, most_frames(config)),
    )
    if clips * frames > MOST_FRAMES:
        raise UserError(
            f"{clips} clips of {frames} frames: at most {MOST_FRAMES} frames at a time; choose fewer or shorter clips"
        )
    given = _whole("frames given", request.given or 0, 0, config.sample.window) or None
    chosen = {
        "clips": (frames,) * clips,
        "history": given,
        **(_tokens(request) if draws_tokens(config) else _clips(request)),
    }
    interval = _whole("every N-th frame", request.interval, 1, LONGEST)
    try:
        settings, _ = resolve(argparse.Namespace(**{**dict.fromkeys(SETTINGS), **chosen, "interval": interval}), config)
    except ConfigError as error:
        raise UserError("; ".join(error.problems)) from error
    return settings, given, interval, _whole("seed", request.seed, 0, LARGEST_NUMBER)


def draws_tokens(config: Config) -> bool:
    """Whether the model draws tokens, and goes by a temperature."""
    return "temperature" not in not_sampled_with(config.objective.name)


def _tokens(request: Request) -> dict[str, Any]:
    return {"temperature": _number("temperature", request.temperature, TEMPERATURE)}


def _clips(request: Request) -> dict[str, Any]:
    guidance = _number("guidance", request.guidance, GUIDANCE)
    # One scale is chosen here, and a schedule would override it.
    return {"steps": _whole("steps", request.steps, 1, MOST_STEPS), "guidance": guidance, "guidance_schedule": ()}


def _number(name: str, value: float | None, span: tuple[float, float]) -> float:
    low, high = span
    if value is None or not low <= value <= high:
        raise UserError(f"{name} = {_shown(value)}: expected a number from {low:g} to {high:g}")
    return value


def _whole(name: str, value: float | None, low: int, high: int) -> int:
    if value is None or not low <= value <= high or value != int(value):
        raise UserError(f"{name} = {_shown(value)}: expected a whole number from {low} to {high}")
    return int(value)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"


def _read(model: Model, request: Request, settings: SampleConfig, given: int | None, interval: int) -> Prompt:
    """The prompt, within limits that are narrower than those of training data."""
    data = model.config.data
    data = replace(
        data, max_video_mb=min(data.max_video_mb, LARGEST_MB), max_video_frames=min(data.max_video_frames, LONGEST)
    )
    config = replace(model.config, data=data, sample=settings)
    if request.path is None:
        kind, number = request.scene
        if kind not in SCENES:
            raise UserError("nothing to continue: give a video or an image, or choose a physics scene")
        number = _whole("number of the scene", number, 0, LARGEST_NUMBER)
        return read_prompt(Source(f"{kind}_{number}", scene=(kind, number)), config, model.codec, given, interval)
    try:
        return read_prompt(Source(request.path.stem, request.path), config, model.codec, given, interval)
    except UserError as error:
        # Names as the page has them: not the server's temporary folder, nor the options of the command line.
        text = str(error).replace(str(request.path), request.path.name)
        for option, words in OPTIONS.items():
            text = text.replace(option, words)
        raise UserError(text) from error
