"""`python -m megatron_videogpt data frames`: a video of every folder of pictures."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...config import paths
from ...config.paths import obstacle
from ...errors import UserError, unusable
from ..bad import DAMAGE, BadVideo
from ..sources.files import walk
from ..video.container import Limits, check_size
from ..video.pictures import VideoWriter
from ..workers import Pool

DESCRIPTION = """\
Make a video of every folder of pictures: data sets that come as folders of frames become what data prepare takes.

Every folder below SRC that holds pictures (.jpg, .jpeg, .png) gives DIR/ITS/PATH.mp4, H.264 of high quality, its frames
in the order of their names, where numbers count as numbers (frame9 before frame10).  A folder with a picture that
cannot be read, or of another size than its first, is left out and named.  Run again, the command makes what is missing.

--size scales frames bilinearly until both sides have at least so many pixels, and takes the square in their middle.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt data frames sky_timelapse/sky_train --size 256 --output videos/sky_train
  python -m megatron_videogpt data prepare videos/sky_train --output shards/sky_train
"""

ENDINGS = frozenset((".jpg", ".jpeg", ".png"))
AT_ONCE = 32
TIMEOUT = 3600.0
"""Frames that are scaled together, and seconds after which a folder is given up."""


@dataclass(frozen=True)
class Task:
    """A folder's pictures in their order, the video to be made of them, and how (0: the size that they have)."""

    pictures: tuple[Path, ...]
    video: Path
    size: int
    fps: float


def scaled(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 ``[F, H, W, 3]`` -> ``[F, size, size, 3]``: bilinear and without antialiasing by max(size / H, size / W),
    sides rounded up, then the square in the middle; 0 leaves them as they are.
    """
    if not size:
        return frames
    factor = max(size / side for side in frames.shape[1:3])
    # Of the side that fits exactly a product may lie above it by a rounding.
    sides = [math.ceil(round(side * factor, 6)) for side in frames.shape[1:3]]
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=sides, mode="bilinear", align_corners=False)
    top, left = ((side - size) // 2 for side in sides)
    square = planes[:, :, top : top + size, left : left + size].round().to(torch.uint8)
    return square.permute(0, 2, 3, 1).contiguous().numpy()


def picture_of(path: Path) -> np.ndarray:
    """uint8 ``[H, W, 3]``; BadVideo where it cannot be read or is too large."""
    try:
        with Image.open(path) as image:
            check_size(path, *image.size, Limits())
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except DAMAGE as error:
        raise BadVideo(path, f"not a readable picture ({error})") from error


def make(task: Task) -> int:
    """Writes the video; its number of frames."""
    task.video.parent.mkdir(parents=True, exist_ok=True)
    shape: tuple[int, ...] | None = None
    with VideoWriter(task.video, task.fps) as video:
        for first in range(0, len(task.pictures), AT_ONCE):
            frames = []
            for path in task.pictures[first : first + AT_ONCE]:
                frames.append(picture_of(path))
                shape = shape or frames[0].shape
                if frames[-1].shape != shape:
                    height, width = frames[-1].shape[:2]
                    reason = f"{width}x{height} pixels, where the folder's first picture has {shape[1]}x{shape[0]}"
                    raise BadVideo(path, reason, "unreadable")
            video.append(scaled(np.stack(frames), task.size))
    return len(task.pictures)


def in_order(pictures: Iterable[Path]) -> tuple[Path, ...]:
    """By their names, numbers in them by their value."""
    return tuple(
        sorted(pictures, key=lambda path: [(int(part), "") if part.isdigit() else (-1, part) for part in parts(path)])
    )


def parts(path: Path) -> list[str]:
    """Of a name, what is a number and what is between."""
    return [part for part in re.split(r"([0-9]+)", path.name) if part]


def tasks_of(source: Path, output: Path, size: int, fps: float, least: int) -> tuple[list[Task], int]:
    """Videos that there are to be, by their names, and how many folders have fewer pictures than `least`."""
    found, short = [], 0
    pictures = sorted(walk(source, ENDINGS, hidden=False), key=lambda path: path.parent.parts)
    for folder, members in groupby(pictures, key=lambda path: path.parent):
        frames = in_order(members)
        if len(frames) < least:
            short += 1
            continue
        name = folder.relative_to(source) if folder != source else Path(source.resolve().name)
        found.append(Task(frames, output / name.parent / f"{name.name}.mp4", size, fps))
    return found, short


def make_all(args: argparse.Namespace) -> tuple[list[int], int, int]:
    """Frames of each new video, folders that were left out, videos that were there."""
    for holds, what in (
        (args.size == 0 or args.size >= 16, f"--size={args.size}: must be 0 or at least 16"),
        (args.fps > 0, f"--fps={args.fps:g}: must be above 0"),
        (args.min_frames >= 1, f"--min-frames={args.min_frames}: must be at least 1"),
        (args.workers >= 0, f"--workers={args.workers}: must be 0 or more"),
        (args.source.is_dir(), f"{args.source}: no such folder; give the one with the folders of pictures"),
    ):
        if not holds:
            raise UserError(what)
    if why := obstacle(args.output):
        raise UserError(f"--output={args.output}: {why}")
    tasks, bad = tasks_of(args.source, args.output, args.size, args.fps, args.min_frames)
    if not tasks:
        what = f"only folders of fewer than {args.min_frames}" if bad else "no"
        raise UserError(f"{args.source}: {what} pictures (looked for {', '.join(sorted(ENDINGS))})")
    missing = [task for task in tasks if not task.video.exists()]
    made = []
    with Pool(make, args.workers, TIMEOUT, label=lambda task: str(task.video)) as pool:
        for number, task in enumerate(missing):
            pool.submit(number, task)
        for number in range(len(missing)):
            try:
                made.append(pool.wait(number))
            except BadVideo as error:
                bad += 1
                print(f"left out: {error}", file=sys.stderr)
    return made, bad, len(tasks) - len(missing)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("source", type=paths.path, metavar="SRC", help="folder below which the folders of frames are")
    parser.add_argument("--output", type=paths.path, required=True, metavar="DIR", help="folder for the videos")
    parser.add_argument(
        "--size", type=int, default=0, metavar="PIXELS", help="side of the square; 0 (default): frames as they are"
    )
    parser.add_argument("--fps", type=float, default=25.0, help="what players show (default: %(default)g)")
    parser.add_argument(
        "--min-frames", type=int, default=2, metavar="N", help="folders of fewer are left out (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes; 0: in this one (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Makes the videos and prints their number; 2 where there is none in the end."""
    try:
        made, bad, before = make_all(args)
    except OSError as error:
        raise unusable(args.output, error) from error
    print(f"{args.output}: {len(made)} videos, {sum(made)} frames; {before} were there, {bad} folders were left out")
    return 0 if made or before else 2


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    return "the same command makes what is missing"
