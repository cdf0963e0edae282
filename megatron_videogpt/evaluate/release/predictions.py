"""Predictions of a released model, checked by `convert verify`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import SCENES, Failure, Task, stage_files

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...sample.generate import Continuation


def check_predictions(task: Task) -> list[str]:
    """Three continuations, written and read back."""
    from rich.progress import Progress

    from ...config.load import load_config
    from ...platforms import world
    from ...sample.generate import generate, load
    from ...sample.prompts import find_sources, read_prompt

    args, stage = task.args, load_config(stage_files(task)[-1])
    if not args.vae and not (args.folder / "vae" / "config.json").is_file():
        raise Failure(
            f"{args.folder}: no vae/ in it, and frames need one; give --vae FOLDER, a diffusers VAE such as "
            "that of SDXL"
        )
    # A VAE from elsewhere came into the converted run.
    model = load(task.work / "run" if args.vae else args.folder)
    config = sampled_like(model.config, stage, args)
    settings, interval = config.sample, stage.data.frame_interval[0]
    scenes = [] if args.videos else [(scene, 0) for scene in SCENES]
    prompts = [
        read_prompt(source, config, model.codec, args.history, interval) for source in find_sources(args.videos, scenes)
    ]
    lines = []
    with Progress(disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task("predictions", total=len(prompts) * sum(settings.clips))
        for made in generate(
            model, prompts, settings, seed=0, watch=lambda frames, _: bar.advance(shown, frames), batch=1
        ):
            lines.append(_written(args.output / "predictions" / made.prompt.name, made, asdict(settings)))
    world.stop()
    return [
        f"{len(lines)} written, {settings.steps} steps, guidance {settings.guidance:g}: look whether they make sense",
        *lines,
    ]


def _written(base: Path, made: Continuation, settings: dict[str, Any]) -> str:
    """Write one prediction and read it back; the line that tells of it."""
    import torch

    from ...data.decode import probe
    from ...sample.generate import Clip
    from ...sample.output import Output

    name, given = made.prompt.name, len(made.prompt.condition)
    if not torch.isfinite(made.latents).all():
        raise Failure(f"{name}: latents that are not finite")
    with Output(base, ("mp4", "png"), made.prompt, torch.empty(0), len(made.frames)) as output:
        output.append(Clip(made.latents, made.frames))
        paths = output.finish({"settings": settings, "seconds": made.seconds})
    video = next(path for path in paths if path.suffix == ".mp4")
    if probe(video).frames != given + len(made.frames):
        raise Failure(f"{video}: {probe(video).frames} frames in it, expected {given + len(made.frames)}")
    errors = output.errors
    known = (
        f", PSNR {_decibel(errors['psnr_model'])} (repeating the last frame: {_decibel(errors['psnr_repeat'])})"
        if errors
        else ""
    )
    return f"{video}: {given} frames given, {len(made.frames)} predicted in {made.seconds:.0f} s{known}"


def _decibel(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.1f} dB"


def sampled_like(config: Config, stage: Config, args: argparse.Namespace) -> Config:
    """A model's configuration with frames and sampling as in a stage, and what the command says on top."""
    from ...config.derived import frame_side

    asked: dict[str, Any] = {
        name: getattr(args, name) for name in ("history", "steps", "clips") if getattr(args, name) is not None
    }
    sample = replace(stage.sample, **asked)
    sample = replace(sample, window=max(sample.window, sample.history + max(sample.clips)))
    physics = replace(stage.data.physics, size=max(16, frame_side(stage) // 16 * 16))
    return replace(config, data=replace(stage.data, physics=physics), sample=sample)
