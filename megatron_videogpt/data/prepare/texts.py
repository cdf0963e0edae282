"""Captions -> text features, shard by shard; shards are shared out among processes, on whose number no file depends."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...condition.base import TextEncoder
from ...condition.captions import text_of
from ...condition.options import CAPTION, ConditionConfig
from ...errors import UserError
from ..bad import BadVideo
from ..locks import write_whole
from ..shards.index import Index
from ..shards.latents import STORED
from ..shards.texts import (
    COUNTS,
    HEADER,
    RECORD,
    VERSION,
    features_name,
    file_size,
    first_samples,
    header_of,
    places_of,
)
from ..sources.datasets import Shards

BEGUN = "encode.json"
READERS = 16  # captions read at the same time, of shards far away
COUNTED = 1024  # captions whose tokens are counted together


@dataclass(frozen=True)
class TextEncoding:
    """What is encoded and how.

    shards: of the data set; stored: a name of `latents.STORED`; batch: captions per call of the encoder; output: a
    folder; options: which texts.
    """

    shards: Shards
    encoder: TextEncoder
    stored: str
    batch: int
    output: Path
    options: ConditionConfig = ConditionConfig("text")

    @property
    def index(self) -> Index:
        """Of the data set."""
        return self.shards.index

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the features are."""
        encoder = self.encoder
        return {
            "version": VERSION,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "width": encoder.width,
            "max_tokens": encoder.max_tokens,
            "stored": self.stored,
            "index": self.index.fingerprint,
            **({"text_from": self.options.text_from} if self.options.text_from != CAPTION else {}),
        }

    @cached_property
    def firsts(self) -> np.ndarray:
        """See `TextFeatures`."""
        return first_samples(self.index)

    def file(self, shard: int) -> Path:
        """Features of a shard; there when they are complete."""
        return self.output / features_name(self.index.shards[shard][0])


@dataclass
class Done:
    """What a process has done.  damaged: samples whose caption could not be read."""

    bar: tqdm
    captions: int = 0
    tokens: int = 0
    damaged: list[BadVideo] = field(default_factory=list)


def default_output(shards: Shards, path: str) -> Path:
    """Where training looks for features, and where they can be written: beside the shards, else in the cache.

    path: as data.path; one that names some tar files gets a folder of its own.
    """
    beside, part, kept = places_of(shards.index, shards.cache)
    folder = Path(shards.index.url.removeprefix("file://"))
    if "://" in str(folder) or not os.access(folder, os.W_OK):
        return Path(kept)
    return Path((part if path.endswith(".tar") else beside).removeprefix("file://"))


def claim(encoding: TextEncoding) -> None:
    """Note in the output folder what it is made of, or find the same there; UserError, one line, when it is something
    else.  For the holder of its lock.
    """
    output, begun = encoding.output, encoding.output / BEGUN
    # Of a process that was killed; whoever calls this has the folder's lock.
    for left in output.glob("*.partial"):
        left.unlink(missing_ok=True)
    if begun.is_file():
        before = json.loads(begun.read_text(encoding="utf-8"))
        changed = [name for name, value in encoding.facts.items() if before.get(name) != value]
        if changed:
            was = f"{changed[0]}={before.get(changed[0])}, not {encoding.facts[changed[0]]}"
            raise UserError(f"{output}: holds features of another command ({was}); remove that folder, or use --output")
        return
    if any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise UserError(f"{output}: is not empty, and no features were begun there; choose another folder by --output")
    write_whole(begun, lambda path: path.write_text(json.dumps(encoding.facts, indent=1) + "\n", encoding="utf-8"))


def encode_shards(encoding: TextEncoding, shards: Sequence[int], done: Done) -> None:
    """Write the features of these shards, or those that are missing.

    Raises:
        BadVideo: a shard cannot be read, while a caption that is damaged counts as none.
        UserError: numbers that cannot be stored.
    """
    readers = ThreadPoolExecutor(READERS)
    try:
        for shard in shards:
            if not encoding.file(shard).is_file():
                _encode_shard(encoding, shard, readers, done)
    finally:
        # Whoever interrupts this does not wait for all captions of a shard.
        readers.shutdown(cancel_futures=True)


def finish(encoding: TextEncoding) -> np.ndarray:
    """When all shards are complete: the joined counts, int32 [samples], and the record that says so."""
    index = encoding.index
    parts = [np.empty(0, np.int32)]
    for shard in range(len(index.shards)):
        samples = int(encoding.firsts[shard + 1] - encoding.firsts[shard])
        found = np.fromfile(encoding.file(shard), "<i4", samples, offset=HEADER)
        expected = file_size(int(found.sum(dtype=np.int64)), encoding.encoder.width, samples, encoding.stored)
        if len(found) != samples or encoding.file(shard).stat().st_size != expected:
            raise UserError(f"{encoding.file(shard)}: is damaged; remove it and run again")
        parts.append(found.astype(np.int32))
    counts = np.concatenate(parts)

    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, counts, allow_pickle=False)

    write_whole(encoding.output / COUNTS, save)
    totals = {
        "samples": len(counts),
        "captions": int(np.count_nonzero(counts)),
        "tokens": int(counts.sum(dtype=np.int64)),
    }
    text = json.dumps({**encoding.facts, **totals}, indent=1) + "\n"
    write_whole(encoding.output / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    return counts


def _encode_shard(encoding: TextEncoding, shard: int, readers: ThreadPoolExecutor, done: Done) -> None:
    samples = range(int(encoding.firsts[shard]), int(encoding.firsts[shard + 1]))
    captions = [_or_none(found, done) for found in readers.map(lambda i: _caption(encoding, i), samples)]
    counts = np.concatenate(
        [np.empty(0, np.int32)]
        + [_count(encoding.encoder, captions[i : i + COUNTED]) for i in range(0, len(captions), COUNTED)]
    )
    # Of similar lengths together, for then little is padding.
    order = np.argsort(counts, kind="stable")[np.count_nonzero(counts == 0) :]
    done.bar.update(len(counts) - len(order))
    write_whole(encoding.file(shard), lambda path: _write_features(encoding, path, captions, counts, order, done))


def _write_features(
    encoding: TextEncoding, path: Path, captions: Sequence[str], counts: np.ndarray, order: np.ndarray, done: Done
) -> None:
    """One file; order: numbers of the captions, as they are encoded.  Features of a few captions are held at once."""
    width, stored = encoding.encoder.width, encoding.stored
    ends = np.cumsum(counts, dtype=np.int64)
    with open(path, "wb") as file:
        file.write(
            header_of(int(counts.sum(dtype=np.int64)), width, len(counts), stored) + counts.astype("<i4").tobytes()
        )
        for begin in range(0, len(order), encoding.batch):
            chosen = order[begin : begin + encoding.batch].tolist()
            for i, features in zip(chosen, encoding.encoder.encode([captions[i] for i in chosen])):
                assert features.shape == (counts[i], width), (features.shape, counts[i], width)
                file.seek(file_size(int(ends[i] - counts[i]), width, len(counts), stored))
                file.write(_bytes(features, stored))
            done.captions, done.tokens = done.captions + len(chosen), done.tokens + int(counts[chosen].sum())
            done.bar.update(len(chosen))


def _bytes(features: Tensor, stored: str) -> bytes:
    """Rows as they are stored, little-endian."""
    numbers = features.to("cpu", STORED[stored]).contiguous()
    if not numbers.isfinite().all():
        raise UserError(
            f"the text encoder gave numbers that are not finite, or too large for {stored}: encode with --dtype=bf16 "
            "or fp32, store with --store=fp32"
        )
    return numbers.view(torch.uint8).numpy().tobytes()


def _caption(encoding: TextEncoding, entry: int) -> str | BadVideo:
    try:
        found = encoding.shards.description(entry).read()
        return text_of(encoding.options, found["label"], found["caption"])
    except BadVideo as error:
        # Storage that does not answer says nothing about the caption.
        if error.kind != "metadata":
            raise
        return error


def _or_none(caption: str | BadVideo, done: Done) -> str:
    if isinstance(caption, str):
        return caption
    done.damaged.append(caption)
    return ""


def _count(encoder: TextEncoder, captions: Sequence[str]) -> np.ndarray:
    """int32 [n]; 0 for captions that are empty or, to the encoder, without any word."""
    counts = np.zeros(len(captions), np.int32)
    there = [i for i, caption in enumerate(captions) if caption.strip()]
    try:
        counts[there] = encoder.count([captions[i] for i in there])
    except UserError:
        if len(captions) > 1:
            return np.concatenate([_count(encoder, [caption]) for caption in captions])
    return counts
