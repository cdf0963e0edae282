"""2,000 damaged and hostile inputs: frames or a rejection of the right kind, and nothing else: no crash, no hang, no
leak, no file outside.
"""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_clip
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.data.shards.dataset import open_index
from megatron_videogpt.data.video.container import Blob, Limits
from megatron_videogpt.data.workers import Pool
from tests.data.damage import small_clips
from tests.data.mutations import FAMILIES, make

LIMITS = Limits(bytes=50_000_000, frames=1_000_000, pixels=8_000_000)
TIMEOUT = 120.0  # seconds for one input; on a quiet machine one takes 0.05
GROWTH = 300e6  # bytes of memory that a process may gain after its first inputs


@dataclass
class Outcome:
    """samples: that could be read; kinds: of rejection; left: files there are afterwards; then the process, its open
    files and its memory in bytes.
    """

    samples: int
    kinds: Counter[str]
    left: list[str]
    process: int
    files: int
    memory: int


@functools.cache
def clips_of(videos: Path) -> dict[str, bytes]:
    return small_clips(videos)


def run(task: tuple[int, Path, Path]) -> Outcome:
    """Write a case to a folder of its own and read all of it, in a reader process."""
    number, videos, root = task
    case = make(clips_of(videos), number)[1]
    folder = root / str(number)
    folder.mkdir()
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    kinds: Counter[str] = Counter()
    samples = 0
    for video in (
        read_tar(folder, root / "cache", kinds)
        if "a.tar" in case.files
        else [*(folder / name for name in case.files), *case_blobs(case.files)]
    ):
        try:
            frames, expected = video if isinstance(video, tuple) else (video, None)
            samples += read(frames, expected)
        except BadVideo as error:
            assert "\n" not in str(error)
            kinds[error.kind] += 1
    if "a.tar" not in case.files:
        assert samples in (0, 2) and all(count == 2 for count in kinds.values()), (
            samples,
            kinds,
        )  # from the file and from its bytes alike
        samples, kinds = samples // 2, Counter({kind: count // 2 for kind, count in kinds.items()})
    process = psutil.Process()
    return Outcome(
        samples,
        kinds,
        sorted(path.name for path in folder.rglob("*")),
        os.getpid(),
        process.num_fds(),
        process.memory_info().rss,
    )


def case_blobs(files: dict[str, bytes]) -> list[Blob]:
    return [Blob(name, data) for name, data in files.items()]


def read_tar(folder: Path, cache: Path, kinds: Counter[str]) -> list[tuple[Blob, int]]:
    """(video, frames that the index promises) of each sample; what was rejected is added to ``kinds``."""
    try:
        index = open_index(str(folder), Cache(cache, 10**8), 0, LIMITS)
    except ValueError as error:
        # All that is rejected is only counted when there is an index.
        assert "no usable sample" in str(error) and "\n" not in str(error)
        kinds["none usable"] += 1
        return []
    kinds.update(error.kind for error in index.rejected)
    assert all("\n" not in str(error) for error in index.rejected)
    return [(Blob(index.key(i), index.data(i)), int(index.entries[i]["frames"])) for i in range(len(index))]


def read(video: Path | Blob, promised: int | None) -> int:
    """1 when the first and the last frames of a video can be read."""
    frames = promised or probe(video, LIMITS).frames
    clip = read_clip(video, sorted({0, frames // 2, frames - 1}), 64, 16, LIMITS)
    assert clip.shape[1] % 16 == 0 and clip.shape[2] % 16 == 0 and max(clip.shape[1:3]) == 64
    return 1


def check(numbers: range, videos: Path, root: Path) -> None:
    """Run cases in two processes and compare what came of them."""
    assert sum(FAMILIES.values()) == 2000
    (root / "cache").mkdir()
    clips = clips_of(videos)
    wrong, by_process = [], defaultdict(list)
    with Pool(run, 2, TIMEOUT, label=lambda task: f"case {task[0]}") as pool:
        for number in numbers:
            pool.submit(number, (number, videos, root))
        for number in numbers:
            family, case = make(clips, number)
            outcome = pool.wait(number)
            by_process[outcome.process].append(outcome)
            expected = set(case.files) | {name for name in outcome.left if name.startswith(("index", ".index"))}
            exact = (
                case.exactly
                if case.exactly is None or case.samples or "a.tar" not in case.files
                else Counter({"none usable": 1})
            )
            good = (
                set(outcome.kinds) <= case.allowed | {"none usable"}
                if exact is None
                else outcome.kinds == exact and outcome.samples == case.samples
            )
            if not good or set(outcome.left) != expected:
                wrong.append(
                    (
                        number,
                        family,
                        outcome.samples,
                        dict(outcome.kinds),
                        outcome.left,
                        "instead of",
                        case.samples,
                        dict(exact or {}),
                    )
                )
        outcomes = [outcome for found in by_process.values() for outcome in found]
    assert (
        sum(outcome.samples > 0 for outcome in outcomes) > len(numbers) // 3
        and sum(bool(outcome.kinds) for outcome in outcomes) > len(numbers) // 3
    )
    assert not wrong, f"{len(wrong)} of {len(numbers)}: {wrong[:10]}"
    assert {path.name for path in root.iterdir()} == {"cache", *map(str, numbers)}
    for outcomes in by_process.values():
        warm = outcomes[len(outcomes) // 4]
        assert outcomes[-1].files == warm.files, [outcome.files for outcome in outcomes]
        assert outcomes[-1].memory - warm.memory < GROWTH, [outcome.memory for outcome in outcomes]


def test_one_in_ten(videos: Path, tmp_path: Path) -> None:
    check(range(0, 2000, 10), videos, tmp_path)


@pytest.mark.long
def test_all_two_thousand(videos: Path, tmp_path: Path) -> None:
    check(range(2000), videos, tmp_path)
