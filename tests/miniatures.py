"""Data sets in the layouts that docs/datasets.md describes, as miniatures: a few short videos, and the lists around
them.  Rows and files that are never complete there come along.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

UCF_CLASSES = ("ApplyEyeMakeup", "BasketballDunk", "YoYo")


def video(
    path: Path, number: int, frames: int = 20, size: tuple[int, int] = (176, 144), codec: str = "libx264"
) -> None:
    """A short video whose pixels depend on its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.RandomState(number).randint(0, 256, (size[1] + frames, size[0], 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[i : i + size[1]], format="rgb24")))
        container.mux(stream.encode(None))


def folder_of_videos(folder: Path, count: int, frames: int, size: tuple[int, int]) -> Path:
    """Videos as they come, some of them in a folder of their own."""
    for number in range(count):
        video(folder / ("" if number % 2 else "holiday 1") / f"clip {number}.mp4", number, frames, size)
    return folder


def table(path: Path, header: str, rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def ucf101(
    folder: Path, name: str = "UCF-101", frames: int = 24, size: tuple[int, int] = (160, 128), groups: int = 4
) -> Path:
    """Class folders of AVI files, and the lists of a split: the first of each class's groups is for tests."""
    train: list[str] = []
    test: list[str] = []
    for number, label in enumerate(UCF_CLASSES, 1):
        for group in range(1, groups + 1):
            file = f"{label}/v_{label}_g{group:02d}_c01.avi"
            video(folder / name / file, 10 * number + group, frames, size, "mpeg4")
            (test if group == 1 else train).append(file if group == 1 else f"{file} {number}")
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    train += ["YoYo/v_YoYo_g99_c01.avi 3"]  # not there
    (lists / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    classes = "".join(f"{number} {label}\n" for number, label in enumerate(UCF_CLASSES, 1))
    (lists / "classInd.txt").write_text(classes)
    return folder


def msrvtt(folder: Path, videos: str = "videos", frames: int = 20, size: tuple[int, int] = (176, 144)) -> Path:
    """Five videos of which one is missing, with three sentences each that are not in their order; entries of other
    kinds.
    """
    described = [
        {
            "category": i % 20,
            "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
            "video_id": f"video{i}",
            "start time": 137.7,
            "end time": 149.4,
            "id": i,
            "split": split,
        }
        for i, split in enumerate(["train", "train", "validate", "train", "train"])
    ]
    sentences = [
        {"caption": f"sentence {i} of {k}", "video_id": f"video{i}", "sen_id": 10 * k + i}
        for k in range(3)
        for i in (1, 0, 2, 4)
    ]
    document = {
        "info": {"year": "2016"},
        "videos": [*described, {"split": "train"}, "nothing"],
        "sentences": [*sentences, {"caption": "lost"}, 5],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_val_videodatainfo.json").write_text(json.dumps(document))
    for i in (0, 1, 2, 4):
        video(folder / videos / ("TrainValVideo" if i < 4 else "TestVideo") / f"video{i}.mp4", i, frames, size)
    return folder


def kinetics_name(name: str, start: int, end: int) -> str:
    """As CVDF's archives have them."""
    return f"{name}_{start:06d}_{end:06d}.mp4"


def frames_of_a_video(folder: Path, count: int, size: tuple[int, int] = (320, 180), seed: int = 0) -> None:
    """A folder of smooth pictures that brighten from frame to frame, named as SkyTimelapse's."""
    folder.mkdir(parents=True)
    waves = np.sin(np.arange(size[0]) / 50 + seed)[None, :, None] * np.cos(np.arange(size[1]) / 40)[:, None, None]
    for number in range(count):
        picture = 60 + 3 * number + 50 * waves * np.array([1.0, 0.6, 0.3])
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
            folder / f"{folder.parent.name}_frames_{number + 97}.jpg", quality=95
        )
