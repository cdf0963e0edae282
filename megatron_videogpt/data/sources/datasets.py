"""Data sets of videos: files in a folder, and members of shards.  What `splits.VideoSplit` draws from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from ...codec.geometry import Geometry
from ...config.schema_data import DataConfig
from ...launch import private_folder
from ..bad import BadVideo, shown
from ..described import BesideFile, DescribedJob, InShard
from ..jobs import FileJob, Job, MemberJob, Reading, reading_of
from ..order import splitmix64
from ..plans import SamplePlan, sample_key
from ..remote import Cache
from ..shards.dataset import Index, open_index
from ..shards.latents import LatentsJob, check_facts
from ..shards.scan import label_of
from ..shards.texts import TextFeatures
from ..video.container import limits_of
from .files import list_videos
from .probed import probe_files

FILE_ENTRY = np.dtype([("width", "<u4"), ("height", "<u4"), ("frames", "<u4"), ("fps", "<f4"), ("size", "<u8")])
CACHE = "~/.cache/megatron_videogpt"  # data.cache="" means this
BLOCK = 1 << 20  # keys hashed together
FNV_START, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@dataclass(frozen=True, eq=False)
class Folder:
    """Video files below a folder.  paths: relative, with slashes; entries: `FILE_ENTRY` of each; tables:
    of videos that need one, see `VideoInfo`; described: whether jobs bring labels and captions.
    """

    root: Path
    paths: tuple[str, ...]
    entries: np.ndarray
    reading: Reading
    tables: dict[int, bytes] = field(default_factory=dict)
    described: bool = False

    @property
    def fingerprint(self) -> str:
        """Of relative paths, sizes and pictures."""
        digest = hashlib.sha256()
        for path, entry in zip(self.paths, self.entries.tolist()):
            digest.update(f"{path}\0{entry}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def name(self, entry: int) -> str:
        """The file's path, as `shown`."""
        return shown(self.root / self.paths[entry])

    def holdout_hashes(self, entries: np.ndarray) -> np.ndarray:
        """uint64 [n]: hashes of the relative paths."""
        return np.array([2 * sample_key(0, 0, 0, shown(self.paths[i])) for i in entries.tolist()], np.uint64)

    def text_tokens(self, entries: np.ndarray) -> np.ndarray | None:
        """See `Collection`."""
        return None

    def job(self, plan: SamplePlan, entry: int) -> Job:
        """Reads frames ``plan.frames`` of a file."""
        path = str(self.root / self.paths[entry])
        job = FileJob(plan, path, self.reading, self.tables.get(entry, b""))
        return DescribedJob(job, BesideFile(self.label(entry), path)) if self.described else job

    def label(self, entry: int) -> str:
        """The folder that a video lies in, below this one: sport/tennis; "" at the top."""
        folder = shown(PurePosixPath(self.paths[entry]).parent)
        return "" if folder == "." else folder


@dataclass(frozen=True, eq=False)
class Shards:
    """Members of tar files: videos, or latents that `data encode` made of them.

    described: whether jobs bring labels and captions; features: of the captions, which jobs then bring instead.
    """

    index: Index
    cache: Cache
    reading: Reading
    described: bool = False
    features: TextFeatures | None = None

    @property
    def entries(self) -> np.ndarray:
        """`shards.ENTRY` of each member, memory-mapped."""
        return self.index.entries

    @property
    def fingerprint(self) -> str:
        """The index's."""
        return self.index.fingerprint

    def name(self, entry: int) -> str:
        """Shard and key."""
        return label_of(self.index.shard_url(entry), self.index.key(entry))

    def holdout_hashes(self, entries: np.ndarray) -> np.ndarray:
        """uint64 [n]: hashes of the keys.

        Clips of one source video should fall on one side, so keys like ``VIDEOID_0003`` are hashed without their
        number; if one source then seems to hold over a quarter of the clips (all keys are ``clip_0003``), the number is
        no part of a source, and whole keys are hashed; where every shard has the same single key, places in the index
        are.
        """
        sources = self.hashes(entries, numbered=False)
        if np.bincount((sources >> np.uint64(48)).astype(np.int64)).max() * 4 <= len(entries):
            return sources
        keys = self.hashes(entries, numbered=True)
        return keys if (keys != keys[0]).any() else splitmix64(entries.astype(np.uint64))

    def text_tokens(self, entries: np.ndarray) -> np.ndarray | None:
        """See `Collection`."""
        return None if self.features is None else self.features.tokens(entries)

    def job(self, plan: SamplePlan, entry: int) -> Job:
        """Reads frames ``plan.frames`` of a member."""
        job = self._job(plan, entry)
        if self.features is not None:
            return DescribedJob(job, self.features.rows(self.index, entry))
        return DescribedJob(job, self.description(entry)) if self.described else job

    def description(self, entry: int) -> InShard:
        """Where a member's label and caption are."""
        found = self.entries[entry]
        meta, text = ((int(found[f"{name}_offset"]), int(found[f"{name}_size"])) for name in ("meta", "text"))
        return InShard(self.index.shard_url(entry), self.index.key(entry), meta, text, self.cache)

    def _job(self, plan: SamplePlan, entry: int) -> Job:
        found = self.entries[entry]
        url, key, offset, size = (
            self.index.shard_url(entry),
            self.index.key(entry),
            int(found["offset"]),
            int(found["size"]),
        )
        if self.index.kind == "latents":
            return LatentsJob(
                plan,
                url,
                key,
                offset,
                size,
                int(found["frames"]),
                self.index.facts["channels"],
                self.index.facts["spatial_stride"],
                self.cache,
            )
        return MemberJob(plan, url, key, offset, size, self.reading, self.cache, self.index.table(entry))

    def hashes(self, entries: np.ndarray, numbered: bool) -> np.ndarray:
        """uint64 [n] of the keys, with or without a trailing ``_digits``."""
        parts = []
        for i in range(0, len(entries), BLOCK):
            block = self.entries[entries[i : i + BLOCK]]
            starts, sizes = block["key_start"].astype(np.int64), block["key_size"].astype(np.int64)
            parts.append(
                hash_strings(
                    self.index.keys, starts, sizes if numbered else source_sizes(self.index.keys, starts, sizes)
                )
            )
        return np.concatenate(parts)


def open_folder(config: DataConfig, path: str) -> tuple[Folder, list[BadVideo]]:
    """(the videos of a folder, files that are none); every file is probed once.  ValueError, one line, when there is no
    such folder, or nothing in it.
    """
    root, files = Path(path), list_videos(path)
    paths: list[str] = []
    rows: list[tuple[int, int, int, float, int]] = []
    tables: dict[int, bytes] = {}
    rejected: list[BadVideo] = []
    for file, info in zip(files, probe_files(files, limits_of(config), _cache_folder(config), max(1, config.workers))):
        if isinstance(info, BadVideo):
            rejected.append(info)
            continue
        if info.table:
            tables[len(paths)] = info.table
        paths.append(file.relative_to(root).as_posix())
        rows.append((info.width, info.height, info.frames, info.fps, file.stat().st_size))
    return Folder(root, tuple(paths), np.array(rows, FILE_ENTRY), reading_of(config), tables), rejected


def _cache_folder(config: DataConfig) -> Path | None:
    """data.cache; None where it is left to the home folder and there is none."""
    try:
        return Path(config.cache or CACHE).expanduser()
    except RuntimeError:
        return None


def open_shards(config: DataConfig, codec: Geometry, path: str) -> tuple[Shards, list[BadVideo]]:
    """(the members of a shard data set, what its index left out); the index is built when it is missing.

    Raises:
        ValueError: one line: no shards there, or latents of another VAE or geometry.
    """
    cache = cache_of(config)
    index = open_index(path, cache, max(1, config.workers), limits_of(config))
    if index.kind == "latents":
        check_facts(path, index.facts, config, codec)
    return Shards(index, cache, reading_of(config)), list(index.rejected)


def cache_of(config: DataConfig) -> Cache:
    """Where remote data and indexes are kept."""
    # Without a home folder there is still one for indexes of data sets that cannot be written to.
    folder = _cache_folder(config) or private_folder() / "cache"
    return Cache(folder, int(config.cache_gb * 1e9))


def hash_strings(text: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """64-bit hashes (FNV-1a, then splitmix64) of n pieces of ``text``, column by column.

    Args:
        text: uint8.
        starts, sizes: int64 [n].

    Returns:
        uint64 [n].
    """
    hashes = np.full(len(starts), FNV_START)
    live = np.flatnonzero(sizes > 0)
    column = 0
    while len(live):
        hashes[live] = (hashes[live] ^ text[starts[live] + column]) * FNV_PRIME
        column += 1
        live = live[sizes[live] > column]
    return splitmix64(hashes)


def source_sizes(text: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sizes without a trailing ``_digits``; unchanged where there is none, or nothing before it.  int64 [n]."""
    ends = sizes.copy()
    live = np.flatnonzero(sizes > 0)
    while len(live):
        last = text[starts[live] + ends[live] - 1]
        live = live[(last >= ord("0")) & (last <= ord("9"))]
        ends[live] -= 1
        live = live[ends[live] > 0]
    numbered = (ends > 1) & (ends < sizes)
    where = np.flatnonzero(numbered)
    numbered[where] = text[starts[where] + ends[where] - 1] == ord("_")
    return np.where(numbered, ends - 1, sizes)
