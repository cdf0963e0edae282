"""Small data sets whose videos have labels and captions: a folder, shards of videos, shards of latents."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import Rejections
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.data.shards.latents import facts_of, pack
from megatron_videogpt.data.sources.open import Source
from megatron_videogpt.data.video.pictures import write_video
from tests.loading import loader_of

FRAMES, SIDE = 12, 32


@dataclass(frozen=True)
class Told:
    """A video: its path below the folder, and its caption in JSON or, with `beside`, in a text file."""

    path: str
    caption: str = ""
    beside: bool = True

    @property
    def label(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def key(self) -> str:
        return self.path.replace("/", "-")


TOLD = (
    Told("sport/tennis/a", "a red ball falls"),
    Told("sport/tennis/b", "the blue box bounces left and the green ball bounces right", False),
    Told("sport/c", "a box"),
    Told("cook/d", " green ball\n"),
    Told("spart/e", "a red box and a red box and a red box", False),
    Told("f"),
)


def video_bytes(folder: Path, number: int) -> bytes:
    """A video of its own."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8).repeat(FRAMES, 0)
    path = folder / f"{number}.mp4"
    write_video(path, frames, 24)
    data = path.read_bytes()
    path.unlink()
    return data


def told_folder(root: Path, told: tuple[Told, ...] = TOLD) -> Path:
    """A folder of videos with texts beside them."""
    root.mkdir()
    for number, one in enumerate(told):
        path = root / f"{one.path}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video_bytes(root, number))
        if one.caption:
            path.with_suffix(".txt").write_text(one.caption, encoding="utf-8")
    return root


def told_shards(root: Path, codec: Codec | None = None, told: tuple[Told, ...] = TOLD, each: int = 4) -> Path:
    """Shards as other tools write them, without an index; of latents where there is a codec."""
    root.mkdir()
    for start in range(0, len(told), each):
        with tarfile.open(root / f"s-{start // each:03d}.tar", "w") as tar:
            for number, one in enumerate(told[start : start + each], start):
                for name, data in _members(root, number, one, codec).items():
                    info = tarfile.TarInfo(f"{one.key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        if codec is not None:
            record = {"facts": facts_of(codec, SIDE, 16, "fp32")}
            (root / f"s-{start // each:03d}.json").write_text(json.dumps(record))
    return root


def _members(root: Path, number: int, one: Told, codec: Codec | None) -> dict[str, bytes]:
    meta: dict[str, Any] = {"width": SIDE, "height": SIDE, "frames": FRAMES, "fps": 24}
    meta |= {"label": one.label} if one.label else {}
    meta |= {"caption": one.caption} if one.caption and not one.beside else {}
    members = {"json": json.dumps(meta).encode()}
    if codec is None:
        members["mp4"] = video_bytes(root, number)
    else:
        side = SIDE // codec.spatial_stride
        torch.manual_seed(number)
        members["safetensors"] = pack([torch.randn(FRAMES, codec.channels, side, side)])
    if one.caption and one.beside:
        members["txt"] = one.caption.encode()
    return members


def data_of(kind: str, path: Path | str, **changes: Any) -> DataConfig:
    """kind: folder, shards or latents."""
    given = {"source": "videos" if kind == "folder" else "shards", "path": str(path), "workers": 0, **changes}
    return DataConfig(
        frames=2, frame_interval=(1, 1), clips=(1, 2), longest_side=SIDE, size_multiple=16, min_side=16, **given
    )


def read_all(source: Source, codec: Codec, data: DataConfig, steps: int = 6) -> tuple[dict[str, Sample], Rejections]:
    """(scored samples, one of each video by its place in `TOLD` as a name, what was rejected)."""
    loader = loader_of(source, codec, Config(data=data, train=TrainConfig(global_batch_size=6)))
    samples = [sample for _ in range(steps) for batch in next(loader) for sample in batch.samples if sample.scored]
    loader.close()
    found: dict[str, Sample] = {}
    for sample in samples:
        for one in TOLD:
            if f"{one.path}.mp4" in sample.name.split(f"/{data.path.rsplit('/', 1)[-1]}/")[-1].partition("[")[0]:
                found[one.path] = sample
            elif f"[{one.key}]" in sample.name:
                found[one.path] = sample
    return found, loader.rejections
