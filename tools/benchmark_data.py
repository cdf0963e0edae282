#!/usr/bin/env python
"""How fast the data pipeline is, against bare PyAV on the same frames, and what latent shards make of it.

    # the clips of tests/videos, 2 reader processes
    python tools/benchmark_data.py
    python tools/benchmark_data.py --source /data/videos --workers 8 --frames 80 --interval 4 --rounds 10
    # panda.md and panda.json
    python tools/benchmark_data.py --source /data/panda-shards --no-latents --output panda

Three things are measured in turn, --rounds times, so that a busy machine slows all of them alike; the table has
medians and the ratios of each round:

bare      as many processes as --workers, each of which opens a video file with PyAV, seeks to the keyframe, decodes
          forward, and converts and resizes the frames that are needed: the least that must be done.  No time stamps
          are checked, nothing is limited, nothing is handed over.
shards    the training loader (data.source=shards, without an encoder) on the same frames: index, plan, tar member,
          checks, decoding, shared memory, rows.
latents   the training loader on latent shards of the same videos: what training reads when tools/encode_latents.py
          has run before.

A folder of videos is put into shards first (tools/prepare_videos.py), and its latents are encoded with the tiny codec
(tools/encode_latents.py). The loader is measured once it runs: the first steps, which its processes read while they
start, do not count. Last, the reader alone against
bare PyAV, in one process: what shards lose beyond that is handing pixels from process to process. Bars: shards at
least 0.9 of bare; latents at least 20 times shards.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.loader import Loader
from megatron_videogpt.data.sources.files import list_videos
from megatron_videogpt.data.sources.open import Source, open_source
from megatron_videogpt.data.sources.probed import probe_files
from megatron_videogpt.data.video import access
from megatron_videogpt.data.video.container import DEFAULTS
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.objective.build import work_of  # noqa: E402
from tools.measuring.bare import Bare, Clip, NoEncoder, reader_by_bare  # noqa: E402
from tools.measuring.report import markdown  # noqa: E402

TOOLS = Path(__file__).resolve().parent
CLIPS = TOOLS.parent / "tests" / "videos"
BARS = {"shards / bare": 0.9, "latents / shards": 20.0}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=paths.path,
        default=CLIPS,
        help="folder of videos, or of shards on this machine (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="reader processes (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a sample (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=4, help="step between frames (default: %(default)s)")
    parser.add_argument(
        "--longest-side", type=int, default=320, help="of the resized frames, in pixels (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="samples of a step (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=12, help="steps of a round; ten times as many of latents (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--no-latents", dest="latents", action="store_false", help="do not encode the videos and measure their latents"
    )
    parser.add_argument(
        "--work",
        type=paths.path,
        help="folder for what is made on the way; kept, and used again (default: a temporary one)",
    )
    parser.add_argument("--output", type=paths.path, help="write the table to OUTPUT.md and all numbers to OUTPUT.json")
    return parser.parse_args()


def loader_rate(source: Source, config: Config, codec: Any, steps: int) -> float:
    """Frames per second of the training loader, after its first steps."""
    loader = Loader(source, codec, config, work_of(config, codec))
    try:
        for _ in range(1 + config.data.prefetch):
            next(loader)
        started = time.perf_counter()
        rows = [row for _ in range(steps) for row in next(loader)]
        seconds = time.perf_counter() - started
    finally:
        loader.close()
    if loader.rejections.total:
        raise UserError(
            f"{loader.rejections.total} samples could not be read ({dict(loader.rejections.counts)}); a "
            "benchmark needs good ones"
        )
    return sum(len(sample.mean) for row in rows for sample in row.samples) / seconds


def measured_clips(source: Source, config: Config, steps: int, folder: Path) -> list[Clip]:
    """The clips that the loader is measured with, as files."""
    first = (1 + config.data.prefetch) * config.train.global_batch_size
    plans = source.train.plans(config.train.seed, range(first, first + steps * config.train.global_batch_size))
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for plan in (plans[place] for place in range(len(plans))):
        job: Any = source.train.job(plan)
        path = folder / f"{plan.item}.{Path(job.url).stem}.video"
        if not path.exists():
            path.write_bytes(job.cache.read(job.url, job.offset, job.size))
        clips.append(Clip(str(path), plan.frames, job.table))
    return clips


def tool(name: str, *given: str) -> None:
    """Run one of the tools beside this one; ValueError when it fails."""
    print(f"python tools/{name} {' '.join(given)}", flush=True)
    done = subprocess.run(
        [sys.executable, str(TOOLS / name), *given], env={**os.environ, "PYTHONPATH": str(TOOLS.parent)}, check=False
    )
    if done.returncode:
        raise UserError(f"tools/{name} failed")


def sources(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, DataConfig]]:
    """Name and options of each data set, made where it is not there."""
    shards = args.source
    if not any(shards.glob("*.tar")):
        shards = work / "shards"
        tool(
            "prepare_videos.py", str(args.source), "--output", str(shards), f"--workers={args.workers}", "--shard-mb=4"
        )
    low = args.interval
    data = DataConfig(
        source="shards",
        path=str(shards),
        frames=args.frames,
        clips=(1, args.frames),
        frame_interval=(low, low),
        workers=args.workers,
    )
    data = replace(data, longest_side=args.longest_side, validation_fraction=0.1, min_side=32)
    yield "shards", data
    if args.latents:
        side = f"--longest-side={args.longest_side}"
        tool(
            "encode_latents.py",
            str(shards),
            f"--output={work / 'latents'}",
            "--codec=tiny",
            side,
            "--dtype=fp32",
            "--platform=cpu",
            "--min-side=32",
        )
        yield "latents", replace(data, path=str(work / "latents"))


def measure(args: argparse.Namespace, work: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Frames per second by what is measured, of every round; and the speed of the reader alone by bare PyAV's."""
    codec: Any = NoEncoder()
    train = TrainConfig(global_batch_size=args.batch)
    runs = {name: (Config(data=data, train=train), open_source(data, codec)) for name, data in sources(args, work)}
    config, source = runs["shards"]
    clips = measured_clips(source, config, args.steps, work / "files")
    alone = reader_by_bare(clips, config.data.longest_side, config.data.size_multiple, args.rounds)
    bare = Bare(clips, args.workers, config.data)
    rates: dict[str, list[float]] = {"bare": [], **{name: [] for name in runs}}
    bare.rate()
    try:
        for number in range(args.rounds):
            rates["bare"].append(bare.rate())
            for name, (config, source) in runs.items():
                rates[name].append(loader_rate(source, config, codec, args.steps * (10 if name == "latents" else 1)))
            print(
                f"round {number + 1}: "
                f"{', '.join(f'{name} {values[-1]:,.0f} frames/s' for name, values in rates.items())}",
                flush=True,
            )
    finally:
        bare.close()
    return rates, alone


def index_times(source: Path, work: Path, workers: int) -> str:
    """A sentence: how long a folder's videos take to be looked into, and to be found known; "" where it has shards."""
    if any(source.glob("*.tar")):
        return ""
    files = list_videos(source)
    cache = work / "probed"
    seconds = []
    for _ in range(2):
        access.forget()
        started = time.perf_counter()
        found = list(probe_files(files, DEFAULTS, cache, workers))
        seconds.append((time.perf_counter() - started) * 1000 / len(files))
    tables = sum(bool(getattr(info, "table", b"")) for info in found)
    frames = sum(getattr(info, "frames", 0) for info in found)
    return (
        f"Index of {len(files)} files with {frames:,} frames, {tables} of which must be decoded whole: "
        f"{seconds[0]:.1f} s for 1,000 files the first time, {seconds[1]:.2f} s afterwards."
    )


def report(rates: dict[str, list[float]], alone: list[float], workers: int) -> tuple[str, dict[str, float]]:
    """The table in Markdown, and the median ratios of the rounds."""
    speeds = [
        [name, *(f"{number:,.0f}" for number in (statistics.median(values), min(values), max(values)))]
        for name, values in rates.items()
    ]
    rows, ratios = [], {}

    def add(name: str, each: list[float], bar: str) -> None:
        rows.append([name, *(f"{number:.2f}" for number in (statistics.median(each), min(each), max(each))), bar])

    for name, bar in BARS.items():
        above, below = name.split(" / ")
        if above in rates:
            each = [a / b for a, b in zip(rates[above], rates[below])]
            ratios[name] = statistics.median(each)
            add(name, each, f"{bar:g}")
    add("reader / bare, one process, no handing over", alone, "")
    both = (
        markdown((f"{workers} processes", "frames/s (median)", "lowest", "highest"), speeds),
        markdown(("ratio of a round", "median", "lowest", "highest", "bar"), rows),
    )
    return "\n\n".join(both), ratios


def main() -> int:
    """Measure and print; 1 when a bar is missed, 2 with one line on stderr when nothing can be measured."""
    args = arguments()
    # Threads that wait for work would take the readers' cores.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if not args.source.is_dir():
                raise UserError(f"--source {args.source}: no such folder; give one with videos or with shards")
            index = index_times(args.source, Path(temporary), args.workers)
            rates, alone = measure(args, args.work or Path(temporary))
        except UserError as error:
            return exit_code(error)
    table, ratios = report(rates, alone, args.workers)
    table = f"{table}\n\n{index}".rstrip()
    print(f"\n{table}")
    if args.output:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.output.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        args.output.with_suffix(".json").write_text(
            json.dumps({"arguments": given, "frames_per_second": rates, "ratios": ratios}, indent=1), encoding="utf-8"
        )
    return int(any(ratio < BARS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
