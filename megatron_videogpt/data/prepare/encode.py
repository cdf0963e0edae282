"""Videos -> latent shards: every frame encoded once, part by part; the parts are shared out among processes and do not
depend on their number.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...codec.base import Codec
from ...errors import UserError
from ..bad import BadVideo, Rejections, shown
from ..jobs import Job, read_job
from ..plans import Sample, SamplePlan
from ..shards.latents import facts_begun, facts_of, pack, to_stored
from ..shards.scan import LATENTS
from ..shards.writer import ShardWriter, merge_index
from ..sources.datasets import Folder, Shards
from ..sources.open import Usable
from ..video.pictures import resized_shape, to_model_range
from ..workers import Pool
from .listings import unique_key

RECORD, REJECTED, PARTS = "encode.json", "rejected.jsonl", "parts"
MOVABLE = ("source", "codec_path", "batch")  # options that may change when a command is run again


@dataclass(frozen=True)
class Encoding:
    """What is encoded and how.

    stored: a name of `latents.STORED`; batch: frames per call of the codec; part: videos that one process writes into
    shards of their own; shard_bytes: a shard is closed when it has so many; options: whatever else shall be noted in
    the output folder.
    """

    usable: Usable
    codec: Codec
    longest_side: int
    size_multiple: int
    stored: str
    batch: int
    part: int
    shard_bytes: int
    output: Path
    options: dict[str, Any]

    @property
    def parts(self) -> list[np.ndarray]:
        """Numbers of the videos of each part."""
        return [self.usable.items[i : i + self.part] for i in range(0, len(self.usable.items), self.part)]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the latents, for the index; those with which an earlier release began them, where they mean the same."""
        facts, record = facts_of(self.codec, self.longest_side, self.size_multiple, self.stored), self.output / RECORD
        begun = json.loads(record.read_text(encoding="utf-8")).get("facts", {}) if record.is_file() else facts
        return facts_begun(begun, facts, self.codec)

    def report(self, part: int) -> Path:
        """Rejected videos of a part; there when the part is complete."""
        return self.output / PARTS / f"{part:06d}.jsonl"

    def describe(self, entry: int) -> tuple[str, dict[str, Any]]:
        """Key and metadata of a video."""
        collection = self.usable.collection
        row = collection.entries[entry]
        geometry = {
            "width": int(row["width"]),
            "height": int(row["height"]),
            "frames": int(row["frames"]),
            "fps": round(float(row["fps"]), 4),
        }
        if isinstance(collection, Folder):
            return self._keys[entry], {"source": shown(collection.paths[entry]), **geometry}
        key = collection.index.key(entry)
        if self._prefixed:
            key = f"{collection.index.shard_url(entry).rpartition('/')[2].removesuffix('.tar')}/{key}"
        return key, {**collection.index.meta(entry), **geometry}

    @cached_property
    def _keys(self) -> list[str]:
        """Of the files of a folder, by number."""
        assert isinstance(self.usable.collection, Folder)
        seen: set[int] = set()
        return [unique_key(os.path.splitext(shown(path))[0], seen) for path in self.usable.collection.paths]

    @cached_property
    def _prefixed(self) -> bool:
        """Whether shards use keys of each other, so that the shard must be part of the key."""
        assert isinstance(self.usable.collection, Shards)
        items = self.usable.items
        return len(np.unique(self.usable.collection.hashes(items, numbered=True))) < len(items)


@dataclass(frozen=True)
class Piece:
    """Some consecutive frames of a video; last: the video ends with it."""

    video: int
    last: bool
    job: Job


@dataclass
class Progress:
    """What a process has done."""

    rejections: Rejections
    bar: tqdm
    videos: int = 0
    frames: int = 0


def claim_output(encoding: Encoding) -> None:
    """Note in the output folder what it is made of, or find the same there; ValueError, one line, when it is something
    else.
    """
    output, path = encoding.output, encoding.output / RECORD
    data = {"videos": len(encoding.usable.items), "fingerprint": encoding.usable.collection.fingerprint}
    record = {
        **encoding.options,
        "part": encoding.part,
        "shard_bytes": encoding.shard_bytes,
        "facts": encoding.facts,
        **data,
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in record if name not in MOVABLE and before.get(name) != record[name]]
        if changed:
            was = f"{changed[0]}={before.get(changed[0])}, not {record[changed[0]]}"
            raise UserError(
                f"--output={output}: holds latents of another command ({was}); choose another folder, or "
                "delete that one"
            )
        return
    if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise UserError(f"--output={output}: is not empty, and no latents were begun there; choose a new folder")
    (output / PARTS).mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".partial"), path)


def encode_parts(encoding: Encoding, parts: Sequence[int], workers: int, timeout: float, done: Progress) -> None:
    """Write the shards of these parts, or those that are missing.

    Args:
        workers: decoding processes; 0 decodes here.
        timeout: seconds after which one that is stuck is replaced.
        done: counts.

    Raises:
        ValueError: too many videos cannot be encoded.
    """
    with Pool(read_job, workers, timeout, label=job_label) as pool:
        for part in parts:
            if not encoding.report(part).is_file():
                _encode_part(encoding, part, pool, 2 * workers + 2, done)


def finish(encoding: Encoding) -> Counter[str]:
    """When all parts are complete: the index, the list of what was rejected (see `Usable.skipped`), and all of it
    counted by kind.

    Raises:
        ValueError: there is no latent at all.
    """
    counts = Counter(encoding.usable.left_out)
    path = encoding.output / REJECTED
    with open(path.with_suffix(".partial"), "w", encoding="utf-8") as file:
        for error in encoding.usable.skipped:
            file.write(json.dumps({"name": error.path, "kind": error.kind, "reason": error.reason}) + "\n")
        for part in range(len(encoding.parts)):
            for line in map(json.loads, encoding.report(part).read_text(encoding="utf-8").splitlines()):
                counts[line["kind"]] += 1
                file.write(json.dumps({name: line[name] for name in ("name", "kind", "reason")}) + "\n")
    os.replace(path.with_suffix(".partial"), path)
    if not any(encoding.output.glob("*.tar")):
        raise UserError(f"{encoding.output}: no video could be encoded; {counts.total()} were rejected, see {path}")
    merge_index(encoding.output, "latents", encoding.facts)
    return counts


def job_label(job: Job) -> str:
    """For messages of the pool."""
    return job.label


def _encode_part(encoding: Encoding, part: int, pool: Pool, ahead: int, done: Progress) -> None:
    writer = ShardWriter(
        encoding.output, "latents", encoding.facts, shard_bytes=encoding.shard_bytes, prefix=f"latents-{part:06d}"
    )
    resume = writer.resume_position
    report = encoding.report(part)
    unfinished = report.with_suffix(".partial")
    lines = unfinished.read_text(encoding="utf-8").splitlines() if unfinished.is_file() else []
    # What came after the last whole shard is encoded again; a killed process may have left half a line.
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["video"] <= resume]
    entries = encoding.parts[part]
    encoded: list[Tensor] = []
    bad = -1
    with open(unfinished, "w", encoding="utf-8") as rejected:
        rejected.writelines(line + "\n" for line in kept)
        for piece, sample in _decoded(pool, _pieces(encoding, entries[entries > resume]), ahead):
            done.bar.update(len(piece.job.plan.frames))
            if piece.video == bad:
                continue
            try:
                encoded.append(_encode(encoding, sample))
                if piece.last:
                    key, meta = encoding.describe(piece.video)
            except BadVideo as error:
                bad, encoded = piece.video, []
                rejected.write(
                    json.dumps(
                        {
                            "video": bad,
                            "name": encoding.usable.collection.name(bad),
                            "kind": error.kind,
                            "reason": error.reason,
                        }
                    )
                    + "\n"
                )
                rejected.flush()
                done.rejections.add(error)
                done.rejections.check()
                continue
            done.frames += len(encoded[-1])
            if piece.last:
                writer.add(key, {LATENTS: pack(encoded)}, meta, position=piece.video)
                done.rejections.good()
                done.videos, encoded = done.videos + 1, []
    writer.close()
    os.replace(unfinished, report)


def _pieces(encoding: Encoding, entries: np.ndarray) -> Iterator[Piece]:
    """All frames of some videos, in pieces of whole batches: of a long video only the latents are held at once."""
    length = encoding.batch * max(1, 64 // encoding.batch)
    for entry in entries.tolist():
        row = encoding.usable.collection.entries[entry]
        frames = int(row["frames"])
        width, height = resized_shape(
            int(row["width"]), int(row["height"]), encoding.longest_side, encoding.size_multiple
        )
        for first in range(0, frames, length):
            numbers = tuple(range(first, min(frames, first + length)))
            plan = SamplePlan(entry, 0, 0, entry, numbers, 1, (), (height, width))
            yield Piece(entry, numbers[-1] == frames - 1, encoding.usable.collection.job(plan, entry))


def _decoded(pool: Pool, work: Iterator[Piece], ahead: int) -> Iterator[tuple[Piece, Sample | BadVideo]]:
    """Pieces with their frames, in order; at most ``ahead`` are read before their turn."""
    waiting: deque[tuple[int, Piece]] = deque()
    for number, piece in enumerate(work):
        pool.submit(number, piece.job)
        waiting.append((number, piece))
        if len(waiting) >= ahead:
            yield _result(pool, *waiting.popleft())
    while waiting:
        yield _result(pool, *waiting.popleft())


def _result(pool: Pool, number: int, piece: Piece) -> tuple[Piece, Sample | BadVideo]:
    try:
        return piece, pool.wait(number)
    except BadVideo as error:
        return piece, error


def _encode(encoding: Encoding, sample: Sample | BadVideo) -> Tensor:
    """Frames as they are stored; BadVideo where they could not be read, or where the VAE gives no finite numbers (kind
    "codec").
    """
    if isinstance(sample, BadVideo):
        raise sample
    assert sample.pixels is not None
    codec = encoding.codec
    try:
        return to_stored(*codec.encode(to_model_range(sample.pixels, codec.device)), encoding.stored)
    except UserError as error:
        raise BadVideo(sample.name, str(error), "codec") from error
