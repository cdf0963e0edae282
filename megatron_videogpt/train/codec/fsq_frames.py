"""Pieces of clips that the small FSQ tokenizer learns from: physics scenes and real clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...config.schema_data import SCENES, PhysicsConfig
from ...data.decode import probe, read_frames
from ...data.sources.physics import render_scene
from ...data.video.pictures import resize_frames

MOVING = 0.75  # of the pieces are taken where something moves
HARDER = (0.7, 0.15, 0.15)  # of scenes: difficulty 0, 1, 2
PARTS, SHORTER = 8, (64, 96, 128)  # of each clip: parts; its shorter sides, of which whole small and detailed pieces


def scenes(size: int, count: int, first: int, frames: int, interval: int, difficulty: int = 0) -> np.ndarray:
    """uint8 [count, frames, size, size, 3], all kinds equally often."""
    configs = [PhysicsConfig(scenes=(kind,), size=size, difficulty=difficulty) for kind in SCENES]
    return np.stack([render_scene(configs[n % len(SCENES)], first + n, frames, interval) for n in range(count)])


def clip_parts(path: Path, frames: int, parts: int, shorter: Sequence[int]) -> list[np.ndarray]:
    """uint8 [frames, h, w, 3] each: ``parts`` of a video, evenly spaced, about 12 frames a second, at each length of
    the shorter side; none of a video that is too short.
    """
    info = probe(path)
    interval = max(1, min(round(float(info.fps) / 12), (info.frames - 1) // max(1, frames - 1)))
    last = info.frames - 1 - interval * (frames - 1)
    if last < 0:
        return []
    starts = sorted({int(start) for start in np.linspace(0, last, parts)})
    found = []
    for start in starts:
        read = read_frames(path, [start + interval * n for n in range(frames)])
        height, width = read.shape[1:3]
        for side in shorter:
            found.append(resize_frames(read, math.ceil(side * max(height, width) / min(height, width) / 8) * 8, 8))
    return [clip for clip in found if min(clip.shape[1:3]) >= min(shorter)]


class Pool:
    """Clips in memory, and batches of random pieces of them.

    real: share of the pieces that are of ``videos``; 0 without any.
    """

    def __init__(
        self,
        size: int,
        frames: int,
        interval: int,
        count: int,
        videos: Sequence[Path] = (),
        real: float = 0.0,
        seed: int = 0,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        shares = HARDER if videos else (1.0,)
        self.kinds: list[list[np.ndarray]] = []
        for difficulty, share in enumerate(shares):
            self.kinds.append(list(scenes(size, max(1, round(share * count)), 0, frames, interval, difficulty)))
            watch()
        self.shares = [share * (1 - real) for share in shares]
        if videos:
            self.kinds.append([part for path in videos for part in clip_parts(path, frames, PARTS, SHORTER)])
            self.shares.append(real)
        watch()

    def batch(self, count: int, frames: int, side: int) -> Tensor:
        """float32 [count, 3, frames, side, side] in [0, 1]."""
        kinds = self.rng.choice(len(self.kinds), size=count, p=self.shares)
        return as_video(np.stack([self._piece(int(kind), frames, side) for kind in kinds]))

    def _piece(self, kind: int, frames: int, side: int) -> np.ndarray:
        """uint8 [frames, side, side, 3]: mostly one with a pixel in it that changes."""
        clips = self.kinds[kind]
        clip = clips[int(self.rng.integers(len(clips)))]
        start = int(self.rng.integers(len(clip) - frames + 1))
        clip = clip[start : start + frames]
        room = np.array(clip.shape[1:3]) - side
        corner = np.array([self.rng.integers(most + 1) for most in room])
        if room.any() and self.rng.random() < MOVING:
            moving = np.argwhere((clip[1:] != clip[:1]).any((0, -1)))
            if len(moving):
                corner = (moving[self.rng.integers(len(moving))] - self.rng.integers(side, size=2)).clip(0, room)
        piece = clip[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        if len(self.kinds) > 1 and kind == len(self.kinds) - 1:
            # Few sources: other colours and contrasts keep the tokenizer from learning these clips' palette.
            piece = piece[:, :, ::-1] if self.rng.random() < 0.5 else piece
            if self.rng.random() < 0.5:
                gain, offset = self.rng.uniform(0.6, 1.2), self.rng.uniform(-40, 40)
                piece = np.clip(piece[..., self.rng.permutation(3)] * gain + offset, 0, 255).astype(np.uint8)
        return piece


def as_video(frames: np.ndarray) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 4, 1, 2, 3).float() / 255
