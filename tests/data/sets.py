"""Small data sets of real clips, as a user would have them: a folder, shards of videos, shards of latents."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_videogpt.codec.base import Codec
from megatron_videogpt.data.decode import probe, read_clip
from megatron_videogpt.data.shards.latents import facts_of, pack, to_stored
from megatron_videogpt.data.shards.writer import ShardWriter, merge_index
from megatron_videogpt.data.video.pictures import to_model_range
from tests.clips import BIRD, CINEPAK, ODD, SMALL, TALL, TRAILER

CLIPS = (TRAILER, TALL, BIRD, CINEPAK, ODD, SMALL)


def video_folder(folder: Path, videos: Path, names: Sequence[str] = CLIPS) -> Path:
    """Copies of some clips."""
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(videos / name, folder / name)
    return folder


def video_shards(folder: Path, videos: Path, names: Sequence[str] = CLIPS, each: int = 4) -> Path:
    """Shards of `each` videos."""
    writer = ShardWriter(folder, "videos", shard_count=each)
    for position, name in enumerate(names):
        info, path = probe(videos / name), videos / name
        meta = {"width": info.width, "height": info.height, "frames": info.frames, "fps": info.fps, "source": name}
        writer.add(path.stem, {path.suffix[1:]: path.read_bytes()}, meta, position)
    writer.close()
    merge_index(folder, "videos")
    return folder


def latent_shards(
    folder: Path,
    videos: Path,
    codec: Codec,
    longest_side: int,
    multiple: int,
    names: Sequence[str] = CLIPS,
    each: int = 4,
) -> Path:
    """All frames of the videos, encoded; float32."""
    facts = facts_of(codec, longest_side, multiple, "fp32")
    writer = ShardWriter(folder, "latents", facts, shard_count=each)
    for position, name in enumerate(names):
        info = probe(videos / name)
        pixels = read_clip(videos / name, range(info.frames), longest_side, multiple)
        stored = to_stored(*codec.encode(to_model_range(pixels)), "fp32")
        meta = {"width": info.width, "height": info.height, "frames": len(pixels), "fps": info.fps, "source": name}
        writer.add(Path(name).stem, {"safetensors": pack([stored])}, meta, position)
    writer.close()
    merge_index(folder, "latents", facts)
    return folder
