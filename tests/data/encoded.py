"""Text features of the small data sets of `told`, made in this process as the tool makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.data.prepare.texts import Done, TextEncoding, claim, encode_shards, finish
from megatron_videogpt.data.sources.datasets import open_shards
from tests.data.told import TOLD, data_of, told_shards
from tests.texts import text_clip, text_t5

LONGEST = 9
CAPTIONS = {one.key: one.caption.strip() for one in TOLD}


def text_sets(root: Path) -> Path:
    """Shards of videos and of latents, and two text encoders."""
    told_shards(root / "shards")
    told_shards(root / "latents", build_codec(CodecConfig()))
    text_clip(root / "clip")
    text_t5(root / "t5")
    return root


def options_of(root: Path, name: str, **more: Any) -> ConditionConfig:
    """Texts by an encoder, whose folder is below `root`."""
    path = "" if name == "words" else str(root / name)
    return ConditionConfig(**{"kind": "text", "encoder": name, "encoder_path": path, "max_tokens": LONGEST, **more})


def encode(shards: Path, encoder: Any, output: Path | None = None, stored: str = "fp16", batch: int = 2) -> Done:
    """What the tool does, in this process."""
    opened, _ = open_shards(data_of("shards", shards), build_codec(CodecConfig()), str(shards))
    encoding = TextEncoding(opened, encoder, stored, batch, output or shards / "text")
    encoding.output.mkdir(parents=True, exist_ok=True)
    claim(encoding)
    with tqdm(disable=True) as bar:
        done = Done(bar)
        encode_shards(encoding, range(len(opened.index.shards)), done)
    finish(encoding)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
