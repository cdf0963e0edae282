"""Text features of shards, computed once (`data encode-text`): training reads them instead of running an encoder.

They lie in a folder ``text`` beside the shards.  For ``NAME.tar`` there is ``NAME.safetensors`` with ``counts`` int32
[samples], tokens T of each sample in the order of the index, and ``features`` [sum T, E], one sample after another;
its header is padded to `HEADER` bytes, so that a sample's rows are found without reading it.  ``counts.npy``, int32
[all samples], joins the counts; ``text.json`` says what the features are, and comes last.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...condition.folder import feature_width, fingerprint_of
from ...condition.options import CAPTION, IDS, ConditionConfig
from ...errors import UserError
from ..bad import BadVideo
from ..remote import Cache
from .dataset import sizes_in
from .index import Index
from .latents import WIDTHS, to_float32
from .scan import label_of

VERSION, FOLDER, RECORD, COUNTS = 1, "text", "text.json", "counts.npy"
HEADER = 256
DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
BLOCK = 1 << 20
AGAIN = "run megatron-videogpt data encode-text"


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Features of all samples of a data set.

    url: of their folder; facts: of ``text.json``; counts: int32 [n], memory-mapped; firsts: int64 [shards + 1], the
    first sample of each shard.
    """

    url: str
    facts: dict[str, Any]
    counts: np.ndarray
    firsts: np.ndarray

    def tokens(self, entries: np.ndarray) -> np.ndarray:
        """int64 [n]: tokens of these samples' captions, 0 where there is none."""
        return self.counts[entries].astype(np.int64)

    def rows(self, index: Index, entry: int) -> Rows:
        """Where a sample's features are."""
        shard = int(index.entries[entry]["shard"])
        begin, end = self.firsts[shard : shard + 2].tolist()
        name, stored, width = index.shards[shard][0], self.facts["stored"], self.facts["width"]
        before = int(self.counts[begin:entry].sum(dtype=np.int64))
        return Rows(
            f"{self.url}/{features_name(name)}",
            label_of(name, index.key(entry)),
            file_size(before, width, end - begin, stored),
            int(self.counts[entry]),
            width,
            DTYPES[stored],
            index.cache,
        )

    @cached_property
    def without(self) -> int:
        """Samples without a caption."""
        return int(np.count_nonzero(self.counts == 0))


@dataclass(frozen=True)
class Rows:
    """Features of one sample.

    url: of the file; name: of the sample; offset: of its first row in the file; count, width: of its rows; dtype: a
    name of `WIDTHS`.
    """

    url: str
    name: str
    offset: int
    count: int
    width: int
    dtype: str
    cache: Cache

    def read(self) -> dict[str, Any]:
        """condition float32 [T, E]: see `Description`; BadVideo also where there is no caption."""
        if not self.count:
            raise BadVideo(self.name, "has no caption, and condition.kind is text", "condition")
        try:
            data = self.cache.read(self.url, self.offset, self.count * self.width * WIDTHS[self.dtype])
        except BadVideo as error:
            raise BadVideo(self.name, f"its text features: {error}", error.kind) from error
        features = to_float32(data, self.dtype).reshape(self.count, self.width)
        if not np.isfinite(features).all():
            raise BadVideo(self.name, "text features that are not finite numbers", "condition")
        return {"condition": features}


def features_name(shard: str) -> str:
    """Name of the features' file of a shard."""
    return f"{shard.removesuffix('.tar')}.safetensors"


def header_of(rows: int, width: int, samples: int, stored: str) -> bytes:
    """The first `HEADER` bytes of a file of features."""
    begin, end = 4 * samples, file_size(rows, width, samples, stored) - HEADER
    tensors = {
        "counts": {"dtype": "I32", "shape": [samples], "data_offsets": [0, begin]},
        "features": {"dtype": DTYPES[stored], "shape": [rows, width], "data_offsets": [begin, end]},
    }
    text = json.dumps(tensors, separators=(",", ":")).encode().ljust(HEADER - 8)
    return struct.pack("<Q", len(text)) + text


def file_size(rows: int, width: int, samples: int, stored: str) -> int:
    """Bytes of a file of features with so many rows of this width."""
    return HEADER + 4 * samples + rows * width * WIDTHS[DTYPES[stored]]


def places_of(index: Index, cache: Cache) -> list[str]:
    """Folders in which features of an index may be, the first of which that fits it counts: beside the shards, beside
    them for a part of them (data.path with braces), and in the cache.
    """
    return [
        f"{index.url}/{FOLDER}",
        f"{index.url}/{FOLDER}-{index.fingerprint[:12]}",
        str(Path(cache.folder) / FOLDER / index.fingerprint[:40]),
    ]


def first_samples(index: Index) -> np.ndarray:
    """int64 [shards + 1]: number of the first sample of each shard, and of all samples."""
    sizes = np.zeros(len(index.shards), np.int64)
    for start in range(0, len(index), BLOCK):
        sizes += np.bincount(index.entries["shard"][start : start + BLOCK], minlength=len(sizes))
    return np.concatenate([[0], np.cumsum(sizes)])


def open_features(index: Index, cache: Cache) -> TextFeatures | None:
    """The features of a data set, all of their files looked for; None where there are none.

    Raises:
        UserError: one line: features of another index, missing or cut files, or ones that cannot be read.
    """
    others: list[str] = []
    for url in places_of(index, cache):
        try:
            record = cache.fetch(f"{url}/{RECORD}")
        except BadVideo:
            continue
        facts = _facts(url, record)
        if facts["index"] != index.fingerprint:
            others.append(
                f"{url}: features of other shards (index {facts['index'][:12]}, not {index.fingerprint[:12]})"
            )
            continue
        return _opened(url, facts, index, cache)
    if others:
        raise UserError(
            f"data.path={index.url}: {others[0]}: the data has changed since, or data.path names a part of it; remove "
            f"that folder and {AGAIN} again"
        )
    return None


def check_features(features: TextFeatures, options: ConditionConfig, path: str) -> None:
    """UserError, one line, unless the features are those of a run's text encoder; its fingerprint is compared where its
    folder is there.
    """
    facts = features.facts
    again = f"change that, or {AGAIN} again"
    for name, ours in (
        ("encoder", options.encoder),
        ("tokens" if options.encoder == IDS else "max_tokens", options.text_tokens),
        ("width", feature_width(options)),
        ("text_from", options.text_from),
    ):
        theirs = facts["max_tokens"] if name == "tokens" else facts.get(name, CAPTION)
        if theirs != ours:
            raise UserError(
                f"data.path={path}: text features with {name} = {theirs}, but this run has condition.{name} = {ours}: "
                f"{again}"
            )
    if options.encoder != "words" and not Path(options.encoder_path or "/nowhere").is_dir():
        return
    ours = fingerprint_of(options)
    if facts["fingerprint"] != ours:
        raise UserError(
            f"data.path={path}: text features of another {options.encoder} ({facts['fingerprint'][:12]}) than "
            f"condition.encoder_path={options.encoder_path} holds ({ours[:12]}): {again}"
        )


def _facts(url: str, record: Path) -> dict[str, Any]:
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        kinds = {"width": int, "max_tokens": int, "encoder": str, "fingerprint": str, "index": str, "stored": str}
        sound = facts["version"] == VERSION and all(type(facts[name]) is kind for name, kind in kinds.items())
        if sound and facts["stored"] in DTYPES:
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{url}/{RECORD}: cannot be read, or is of another release; remove {url} and {AGAIN} again")


def _opened(url: str, facts: dict[str, Any], index: Index, cache: Cache) -> TextFeatures:
    again = f"{AGAIN} again, which makes what is missing"
    try:
        counts = np.load(cache.fetch(f"{url}/{COUNTS}"), mmap_mode="r", allow_pickle=False)
        sound = counts.dtype == np.int32 and counts.shape == (len(index),)
    except (BadVideo, OSError, ValueError) as error:
        raise UserError(f"{url}/{COUNTS}: cannot be read ({' '.join(str(error).split())[:200]}); {again}") from error
    if not sound:
        raise UserError(
            f"{url}/{COUNTS}: must be int32 [{len(index)}], but is {counts.dtype} {list(counts.shape)}; {again}"
        )
    firsts = first_samples(index)
    _check_sizes(url, facts, [name for name, _ in index.shards], counts, firsts, again)
    return TextFeatures(url, facts, counts, firsts)


def _check_sizes(
    url: str, facts: dict[str, Any], shards: Sequence[str], counts: np.ndarray, firsts: np.ndarray, again: str
) -> None:
    found = sizes_in(url, url)
    for number, shard in enumerate(shards):
        begin, end = int(firsts[number]), int(firsts[number + 1])
        rows = int(counts[begin:end].sum(dtype=np.int64))
        expected, there = file_size(rows, facts["width"], end - begin, facts["stored"]), found.get(features_name(shard))
        if there != expected:
            state = "is missing" if there is None else f"has {there} bytes, not {expected}"
            raise UserError(f"{url}/{features_name(shard)}: {state}; {again}")
