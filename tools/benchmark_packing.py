"""Padding, balance and planning time of packed rows, on a synthetic index like Panda-70M's; naive dealing beside it.

    # stages 3 and 4 on 64 and 320 data parallel ranks, 40 steps of each
    python tools/benchmark_packing.py
    python tools/benchmark_packing.py --stages 4 --steps 200 --pack-tokens 98304
    python tools/benchmark_packing.py --entries 10000000 --ranks 1024

Nothing is read or trained: the real planner (splits, sample plans, dealing, rows) runs on an index of a million
made-up videos.

The index: durations are log-normal, cut off at 2 and 60 s, with mean 8.5 s as in Panda-70M (70,723,513 clips, 167
thousand hours; arXiv 2402.19479); frame rates 24, 25, 29.97 and 30; 86 % of the pictures 16:9 (1280x720 or 640x360),
the others 4:3, 21:9, square and portrait.  Only the mean duration is published; the spread, frame rates and aspect
ratios are assumptions.  Sampling is that of examples/videogpt/stage3.toml and stage4.toml (48 or 80 frames, interval
4..12, K clips), and videos too short for that give what they have (data.min_frames=16).

Columns: padding is the share of all rows' tokens that is padding; imbalance is the largest over the mean cost of a
rank in a step (FLOPs, padding included), its mean and worst over the steps; bound is what no dealing of these samples
can fall below; ms is the planning time of a step on one core. Naive dealing gives consecutive samples to consecutive
ranks and fills rows in order; its rows are padded to the same lengths.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

# One thread: planning shares a machine with the readers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402

from megatron_videogpt.codec.geometry import expected_geometry  # noqa: E402
from megatron_videogpt.config.load import load_config  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.data.packing import StepPlanner  # noqa: E402
from megatron_videogpt.data.plans import shortest_video  # noqa: E402
from megatron_videogpt.data.splits import VideoSplit  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.objective.build import work_of  # noqa: E402
from megatron_videogpt.plan.balance import DealingStatistics, measure  # noqa: E402
from tools.measuring.report import command, markdown, progress  # noqa: E402

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "videogpt"
MEAN_SECONDS = 8.5
SIZES = {
    (1280, 720): 0.6,
    (640, 360): 0.26,
    (960, 720): 0.04,
    (480, 360): 0.02,
    (1680, 720): 0.02,
    (720, 720): 0.02,
    (406, 720): 0.04,
}
ENTRY = np.dtype([("width", "<u4"), ("height", "<u4"), ("frames", "<u4"), ("fps", "<f4")])
COLUMNS = (
    "stage",
    "ranks",
    "samples a rank",
    "dealing",
    "padding",
    "row lengths",
    "rows a rank",
    "imbalance",
    "worst",
    "bound",
    "ms",
)


class SyntheticVideos:
    """A collection of videos that nobody can read.  entries: width, height, frames and frame rate of each."""

    fingerprint = "synthetic"

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.entries = np.empty(count, ENTRY)
        sizes = np.array(list(SIZES))[rng.choice(len(SIZES), count, p=list(SIZES.values()))]
        self.entries["width"], self.entries["height"] = sizes.T
        self.entries["fps"] = rng.choice([24.0, 25.0, 29.97, 30.0], count, p=[0.25, 0.2, 0.25, 0.3])
        seconds = np.clip(rng.lognormal(np.log(6.6), 0.75, count), 2, 60)
        self.entries["frames"] = np.rint(seconds * MEAN_SECONDS / seconds.mean() * self.entries["fps"])

    def name(self, entry: int) -> str:
        """Of a video."""
        return f"video-{entry}"

    def shares(self, entries: np.ndarray) -> np.ndarray:
        """Nothing is held out."""
        return np.full(len(entries), 2**63, np.uint64)

    def text_tokens(self, entries: np.ndarray) -> None:
        """There are no captions."""
        return None

    def job(self, plan: Any, entry: int) -> Any:
        """There is nothing to read."""
        raise UserError(f"video {entry} of the synthetic index: has no frames; only plans can be made from it")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="videos of the index")
    parser.add_argument("--stages", type=int, nargs="+", choices=(3, 4), default=[3, 4], help="whose sampling is used")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 320], help="data parallel ranks")
    parser.add_argument("--samples", type=int, default=10, help="samples of a rank and step")
    parser.add_argument(
        "--pack-tokens",
        type=int,
        default=65536,
        help="token budget of a row; must hold the longest sample (63,918 in stage 4)",
    )
    parser.add_argument(
        "--buckets",
        type=int,
        nargs="*",
        default=[16, 64],
        help="windows of data.cost_buckets to try with one sample a rank",
    )
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="steps of each case")
    options = parser.parse_args()
    if min(options.entries, options.samples, options.steps, *options.ranks) < 1:
        parser.error("--entries, --samples, --steps and --ranks must be at least 1")
    return options


def planner_of(
    options: argparse.Namespace, videos: SyntheticVideos, stage: int, ranks: int, samples: int, buckets: int = 0
) -> StepPlanner:
    """The planner of one case."""
    config: Config = load_config(EXAMPLES / f"stage{stage}.toml")
    data = replace(config.data, min_frames=16, pack_tokens=options.pack_tokens, cost_buckets=buckets)
    config = replace(config, data=data, train=replace(config.train, global_batch_size=ranks * samples))
    codec = expected_geometry(config.codec)
    usable = np.flatnonzero(videos.entries["frames"] >= shortest_video(data, codec.temporal_stride)).astype(np.int32)
    split = VideoSplit("train", data, codec.temporal_stride, videos, usable)
    return StepPlanner(split, config.train.seed, config, work_of(config, codec), ranks)


def cases(options: argparse.Namespace) -> list[tuple[int, int, int, int]]:
    """(stage, ranks, samples a rank, buckets): the asked-for number of samples on all ranks, then one sample on the
    most ranks.
    """
    many = [(stage, ranks, options.samples, 0) for stage in options.stages for ranks in options.ranks]
    return many + [
        (stage, max(options.ranks), 1, buckets) for stage in options.stages for buckets in (0, *options.buckets)
    ]


def row(stage: int, ranks: int, samples: int, name: str, dealt: DealingStatistics, timed: bool) -> list[str]:
    """A line of the table."""
    rows = f"{min(dealt.rows)}" if min(dealt.rows) == max(dealt.rows) else f"{min(dealt.rows)} to {max(dealt.rows)}"
    milliseconds = f"{1e3 * statistics.mean(dealt.seconds):.1f}" if timed else ""
    balance = statistics.mean(dealt.imbalance), max(dealt.imbalance), statistics.mean(dealt.bound)
    case = [f"{stage}", f"{ranks}", f"{samples}", name, f"{dealt.padding:.2%}", f"{len(dealt.lengths)}", rows]
    return [*case, *(f"{number:.3f}" for number in balance), milliseconds]


def main() -> None:
    """Plan steps of every case and print a Markdown table."""
    options = arguments()
    videos = SyntheticVideos(options.entries)
    seconds = videos.entries["frames"] / videos.entries["fps"]
    lines = []
    means: dict[int, float] = {}
    with progress(transient=True) as bar:
        for stage, ranks, samples, buckets in cases(options):
            planner = planner_of(options, videos, stage, ranks, samples, buckets)
            planner.step(0)
            # Steps of whole windows, so that planning a window is shared by its steps as in a run; the window of the
            # warm-up is not among them.
            first, steps = buckets or 1, max(buckets, options.steps // (buckets or 1) * (buckets or 1))
            task = bar.add_task(
                f"stage {stage}, {ranks} ranks, {samples} samples{f', buckets {buckets}' if buckets else ''}",
                total=steps,
            )
            configured, naive = measure(planner, bar.track(range(first, first + steps), task_id=task))
            if not buckets:
                lines.append(row(stage, ranks, samples, "naive", naive, timed=False))
            lines.append(
                row(stage, ranks, samples, f"cost_buckets={buckets}" if buckets else "by cost", configured, timed=True)
            )
            means.setdefault(stage, sum(configured.tokens) / steps / ranks / samples)
    print(f"{command()}\n")
    spread = f"{seconds.mean():.1f} s (median {np.median(seconds):.1f}, 95 % below {np.quantile(seconds, 0.95):.1f})"
    print(
        f"{options.entries:,} videos of {spread}; mean tokens of a sample: "
        f"{', '.join(f'stage {stage} {mean:,.0f}' for stage, mean in means.items())};"
    )
    print(
        f"rows of at most {options.pack_tokens:,} tokens; {options.steps} steps; numpy {np.__version__}, "
        f"{platform.machine()}, one core\n"
    )
    print(markdown(COLUMNS, lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
