"""`python -m megatron_videogpt sample`: continue a video, and show beside it what really happened where the input knows."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..config.check import find_problems
from ..config.estimate import frame_side
from ..config.load import ConfigError
from ..config.schema import SCENES, Config, SampleConfig
from ..data.codec import Codec, build_codec
from ..data.decode import BadVideo, probe, read_frames, resize_frames, to_model_range, to_pixels, write_video
from ..data.physics import render_scene
from ..hub.sampling_videogpt import Denoiser, Step, continue_videos
from ..platforms import activate
from .evaluate import decode_continuation, pixel_frames, psnr, squared_errors
from .render import contact_sheet, prediction_video
from .settings import keyed_noise, sampling

DESCRIPTION = """\
Continue a video with a trained model, clip after clip.

The model is given some frames (the history), and generates the clips that you ask for one after another; finished clips become history.
It writes OUT.mp4 (given frames outlined in blue, generated ones in orange, ground truth at the left where there is some), OUT.png (all frames
side by side) and OUT.json (settings and errors).  What you do not say comes from the configuration that the model was trained with.
"""

EXAMPLES = """\
examples:
  16 new frames after a video's frames but its last 16, which serve as ground truth:
    python -m megatron_videogpt sample --checkpoint runs/quickstart --video in.mp4 --output out.mp4 --clips 8,8
  the first 8 frames of every fourth frame, then 24 new ones, stronger guidance by the history:
    python -m megatron_videogpt sample --checkpoint runs/mine --video in.mp4 --output out.mp4 --history 8 --interval 4 --clips 24 --guidance 3.0
  a scene of the built-in physics generator:
    python -m megatron_videogpt sample --checkpoint runs/quickstart --scene bounce/3 --output out.mp4
"""


def _clips(text: str) -> tuple[int, ...]:
    """`8,8` -> (8, 8)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected frames per clip, separated by commas, for example 8,8") from None


def _scene(text: str) -> tuple[str, int]:
    """`bounce/3` -> ("bounce", 3)."""
    kind, _, number = text.partition("/")
    if kind not in SCENES or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected KIND/NUMBER, for example bounce/3; kinds: {', '.join(SCENES)}")
    return kind, int(number)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog, parser.formatter_class = DESCRIPTION, EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder of a training run (its train.output)")
    parser.add_argument("--step", type=int, metavar="N", help="use the run's checkpoint of this step (default: the newest)")
    weights = "trained, or average: their moving average, which a run keeps with optimizer.ema_decay (default: trained)"
    parser.add_argument("--weights", choices=("trained", "average"), default="trained", help=weights)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", metavar="FILE", help="the video to continue, of any format that PyAV reads")
    source.add_argument("--scene", type=_scene, metavar="KIND/NUMBER", help=f"a physics scene instead of a video; kinds: {', '.join(SCENES)}")
    parser.add_argument("--output", required=True, metavar="OUT.mp4", help="where the video goes; OUT.png and OUT.json beside it")
    parser.add_argument("--clips", type=_clips, metavar="N,N,...", help="frames of each generated clip, in order (latent frames, where the codec joins frames)")
    history = "frames given, from the video's start (default: all before the last sum(clips), as many as the window holds; all of a shorter video)"
    parser.add_argument("--history", type=int, metavar="N", help=history)
    parser.add_argument("--interval", type=int, metavar="N", help="use every N-th frame (default: the smallest interval of training)")
    parser.add_argument("--window", type=int, metavar="N", help="most frames the model sees at once, history and clip together")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps per clip: more is slower and finer")
    parser.add_argument("--guidance", type=float, metavar="X", help="how strongly to follow the history; 1 turns guidance off and halves the time")
    noise = "noise mixed into the history from the second clip on, in [0, 1), against drift over many clips"
    parser.add_argument("--history-noise", type=float, metavar="X", help=noise)
    parser.add_argument("--time-shift", type=float, metavar="X", help="above 1 spends more of the steps on high noise")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another continuation (default: 0)")


@dataclass(frozen=True)
class Material:
    """Frames at the model's size, uint8 ``[., H, W, 3]``.  truth: what really followed, possibly shorter than the prediction, or None."""

    condition: np.ndarray
    truth: np.ndarray | None
    fps: float


def run(args: argparse.Namespace) -> None:
    """Sample and write the three files; ValueError in one line for whatever the user can mend."""
    output = Path(args.output)
    _check_command(args, output)
    # Before anything imports megatron-core, which looks for its device as it is imported.
    device = activate("auto").device
    from ..train.inference import load_denoiser

    denoiser, config = load_denoiser(Path(args.checkpoint), args.step, average=args.weights == "average")
    settings, interval = resolve(args, config)
    codec = build_codec(config.codec).to(device, torch.float32)
    material = read_material(args, config, settings, interval, codec)

    started = time.perf_counter()
    with torch.no_grad():
        history, _ = codec.encode(to_model_range(material.condition).to(device))
        new = generate(denoiser, history, settings, args.seed)
        video = decode_continuation(codec, history, new)
    report = {
        "checkpoint": str(args.checkpoint),
        "weights": args.weights,
        "input": args.video or "/".join(map(str, args.scene)),
        "settings": {**asdict(settings), "history": len(history), "interval": interval, "seed": args.seed},
        "given_frames": len(material.condition),
        "generated_frames": len(video),
        "seconds": time.perf_counter() - started,
        "errors": errors(video, material),
    }
    write(output, material, to_pixels(video), report)


def _check_command(args: argparse.Namespace, output: Path) -> None:
    """What can be told before anything slow starts."""
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"--output {output}: must end in .mp4")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("sample runs in one process: start it with `python -m megatron_videogpt sample`, without torchrun")
    if args.video is not None:
        _video_length(args.video, 1)


def resolve(args: argparse.Namespace, config: Config) -> tuple[SampleConfig, int]:
    """The run's sampling settings with the command's on top, and the frame interval; raises `ConfigError` with all problems."""
    names = ("clips", "history", "window", "steps", "guidance", "history_noise", "time_shift")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = replace(config.sample, **given)
    interval = config.data.frame_interval[0] if args.interval is None else args.interval
    problems = [line for line in find_problems(replace(config, sample=settings), None) if line.startswith("sample.")]
    if interval < 1:
        problems.append(f"--interval {interval}: must be at least 1 (1 uses every frame)")
    if args.history is not None and args.history < 1:
        problems.append(f"--history {args.history}: must be at least 1 (there must be something to continue)")
    if not problems and settings.window <= settings.clips[0]:
        problems.append(f"sample.window = {settings.window}: leaves no room for history beside a clip of {settings.clips[0]} frames; use a larger --window")
    if problems:
        raise ConfigError(problems)
    return settings, interval


def _video_length(path: str, interval: int) -> tuple[int, float]:
    """Frames at this interval, and their rate."""
    try:
        info = probe(path)
    except BadVideo as error:
        raise ValueError(f"--video {error}") from error
    return (info.frames - 1) // interval + 1, info.fps / interval


def plan(frames: int, history: int | None, settings: SampleConfig, codec: Codec) -> tuple[int, int, int]:
    """Where in a video of so many frames the condition starts, where the truth starts, and where that ends (equal when there is none).

    history: latent frames asked for, from the start of the video; None takes those before the last ``sum(clips)``.
    """
    clips, room = sum(settings.clips), settings.window - settings.clips[0]
    if history is not None:
        first = pixel_frames(codec, history)
        if first > frames:
            raise ValueError(f"--history {history} needs {first} frames, the video has {frames} at this interval; use a smaller --history or --interval")
        return 0, first, min(frames, pixel_frames(codec, history + clips))
    latent = (frames - 1) // codec.temporal_stride + 1
    known = latent > clips
    given = min(room, latent - clips if known else latent)
    first, last = pixel_frames(codec, given), pixel_frames(codec, given + clips) if known else pixel_frames(codec, given)
    return frames - last, frames - last + first, frames


def read_material(args: argparse.Namespace, config: Config, settings: SampleConfig, interval: int, codec: Codec) -> Material:
    """Decode or render the frames that are needed, at the model's size."""
    if args.scene is not None:
        kind, number = args.scene
        history = min(settings.history, settings.window - settings.clips[0]) if args.history is None else args.history
        first = pixel_frames(codec, max(1, history))
        physics = replace(config.data.physics, scenes=(kind,))
        frames = render_scene(physics, number, pixel_frames(codec, max(1, history) + sum(settings.clips)), interval)
        return Material(frames[:first], frames[first:], physics.fps / interval)
    length, fps = _video_length(args.video, interval)
    start, first, end = plan(length, args.history, settings, codec)
    try:
        frames = read_frames(args.video, [index * interval for index in range(start, end)])
    except BadVideo as error:
        raise ValueError(f"--video {error}") from error
    multiple = math.lcm(config.data.size_multiple, codec.spatial_stride * config.model.patch_size)
    frames = resize_frames(frames, frame_side(config), multiple)
    first -= start
    return Material(frames[:first], frames[first:] if len(frames) > first else None, fps)


def generate(denoiser: Denoiser, history: Tensor, settings: SampleConfig, seed: int) -> Tensor:
    """New latents ``[sum(clips), C, h, w]`` under a progress bar that counts frames."""
    columns = ("sampling", BarColumn(), TextColumn("{task.completed:.1f}/{task.total} frames  {task.fields[rate]}"), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(settings.clips), rate="")

        def advance(step: Step) -> None:
            bar.advance(task, len(step.z[0]) / settings.steps)
            bar.update(task, rate=f"{bar.tasks[0].completed / (time.perf_counter() - started):.2f} frames/s")

        return continue_videos(denoiser, [history], sampling(settings), keyed_noise([0], seed), advance)[0]


def errors(video: Tensor, material: Material) -> dict[str, float | None]:
    """Of the prediction and of repeating the last given frame; empty without ground truth.  PSNR null where the error is zero."""
    if material.truth is None:
        return {}
    model, repeat = squared_errors(video, np.concatenate([material.condition, material.truth]), len(material.condition))
    named = {"mse_model": model, "psnr_model": psnr(model), "mse_repeat": repeat, "psnr_repeat": psnr(repeat)}
    named["ratio"] = model / repeat if repeat else math.inf
    return {name: value if math.isfinite(value) else None for name, value in named.items()}


def write(output: Path, material: Material, predicted: np.ndarray, report: dict[str, Any]) -> None:
    """The mp4, the contact sheet and the report; prints where they are and how good the prediction is."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_video(output, prediction_video(material.condition, predicted, material.truth), material.fps)
    sheet, facts = output.with_suffix(".png"), output.with_suffix(".json")
    contact_sheet(material.condition, predicted, material.truth, sheet)
    facts.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rate = report["generated_frames"] / report["seconds"]
    print(f"{report['given_frames']} frames given, {report['generated_frames']} generated ({rate:.2f} frames/s)")
    if report["errors"]:
        numbers = {name: math.nan if value is None else value for name, value in report["errors"].items()}
        compared = min(len(predicted), len(material.truth)) if material.truth is not None else 0
        print(f"against the {compared} true frames: prediction {numbers['psnr_model']:.2f} dB PSNR (MSE {numbers['mse_model']:.5f}), ", end="")
        print(f"repeating the last given frame {numbers['psnr_repeat']:.2f} dB ({numbers['mse_repeat']:.5f}), ratio {numbers['ratio']:.3f}")
    else:
        print("no ground truth: the video ends with the given frames")
    print(f"wrote {output}, {sheet} and {facts}")
