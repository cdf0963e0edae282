#!/usr/bin/env python3
"""Long videos of frame as prompt, chunk by chunk over a window that moves: with a cache of finished frames and without,
side by side in one run, for both networks.

Both networks have random weights: only their shape matters, no checkpoint is needed.  A video goes on from --given
frames by --chunks chunks of --chunk frames; a chunk is made in --steps steps and sees a window of given frames and a
chunk.  The ways take turns, --repeat times, and the least seconds of each count.

  decoder     uncached; recompute (at the window's end what is left is computed anew: the same frames as without a
              cache); keep (keys and values stay, as published)
  factorised  the same three

`times as fast` is uncached seconds by those of the way, by the clock and in CPU seconds of the process (which other
work on the machine does not lengthen as much).  `difference` is the largest one to the frames without a cache, as a
fraction of the largest value: of all chunks, but of the first alone for keep, which later is another result.  `MiB`
is what the cache's buffers hold after the first chunk, the second and the last: from the second on the window is full,
and it must not grow.

The number of steps matters: a cache saves in every step, and costs a pass between two chunks.  The published sampler
takes 100.

    python tools/benchmark_rollout.py                          # 8 chunks of 8 after 25 frames, 100 steps: takes a while
    python tools/benchmark_rollout.py --steps 10 --repeat 1    # a look
    python tools/benchmark_rollout.py --networks factorised --grid 16,16 --hidden 384
    python tools/benchmark_rollout.py --quick                  # tiny, in seconds: does it run here?
    python tools/benchmark_rollout.py --output out/            # rollout.json and rollout.png as well
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from tools.benchmark_rollout_ways import NETWORKS, WAYS, Shape, Way, ways_of  # noqa: E402
from tools.benchmark_sampling import numbers  # noqa: E402


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="which to measure (default: both)"
    )
    parser.add_argument("--layers", default=4, help="(default: %(default)s)", **number)
    parser.add_argument("--hidden", default=256, help="width of the layers (default: %(default)s)", **number)
    parser.add_argument("--heads", default=4, help="(default: %(default)s)", **number)
    parser.add_argument("--grid", type=numbers, default=(6, 6), help="patch rows and columns of a frame (default 6,6)")
    parser.add_argument("--given", default=25, help="frames to begin with (default: %(default)s)", **number)
    parser.add_argument("--chunk", default=8, help="frames of a chunk (default: %(default)s)", **number)
    parser.add_argument("--chunks", default=8, help="how many (default: %(default)s)", **number)
    parser.add_argument("--steps", default=100, help="of a chunk (default: %(default)s, as published)", **number)
    parser.add_argument("--threads", default=1, help="CPU threads (default: %(default)s)", **number)
    parser.add_argument("--repeat", default=2, help="runs of each way, in turn (default: %(default)s)", **number)
    parser.add_argument("--quick", action="store_true", help="a tiny model, where no option says otherwise")
    parser.add_argument("--output", type=paths.path, help="folder for rollout.json and rollout.png")
    if parser.parse_args().quick:
        # As defaults: what the command line says still counts.
        parser.set_defaults(layers=2, hidden=32, heads=2, grid=(2, 2), given=3, chunk=2, chunks=3, steps=2, repeat=1)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """UserError, one line, for what nothing can be measured with."""
    for name in ("layers", "hidden", "heads", "given", "chunk", "steps", "threads", "repeat"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if args.chunks < 2:
        raise UserError(f"--chunks {args.chunks}: must be at least 2, so that the window moves")
    if len(args.grid) != 2 or min(args.grid) < 1:
        raise UserError(f"--grid {','.join(map(str, args.grid))}: give rows and columns, such as 8,8")
    if args.hidden % args.heads or args.hidden // args.heads % 2 or args.hidden % 4:
        raise UserError(f"--hidden {args.hidden}: must be a multiple of 4, and of twice --heads {args.heads}")


def measure(ways: dict[str, Way], repeat: int, advance: Any) -> dict[str, dict[str, Any]]:
    """Way -> its fastest run, its cache's bytes after each chunk, and its difference."""
    best: dict[str, dict[str, Any]] = {}
    frames: dict[str, list[Any]] = {}
    for _ in range(repeat):
        for name, way in ways.items():
            advance(name, 0)
            wall, cpu = time.perf_counter(), time.process_time()
            made, held = [], []
            for chunk, size in way():
                made.append(chunk)
                held.append(size)
                advance(name, 1)
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "bytes": held}
            before = best.get(name, taken)
            best[name] = taken | {key: min(before[key], taken[key]) for key in ("wall", "cpu")}
            frames[name] = made
    for name, found in best.items():
        count = 1 if name == "keep" else len(frames[name])
        pairs = list(zip(frames[name][:count], frames["uncached"]))
        largest = max(float(wanted.abs().max()) for _, wanted in pairs)
        found["difference"] = max(float((ours - wanted).abs().max()) for ours, wanted in pairs) / largest
        found |= {f"{key}_ratio": best["uncached"][key] / found[key] for key in ("wall", "cpu")}
    return best


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown."""
    columns = ["network", "way", "seconds", "times as fast", "CPU seconds", "times as fast", "MiB of the cache"]
    columns.append("difference")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for network, ways in results.items():
        for name, one in ways.items():
            cells = [network, name, f"{one['wall']:.2f}", f"**{one['wall_ratio']:.2f}**", f"{one['cpu']:.2f}"]
            cells += [f"{one['cpu_ratio']:.2f}", ", ".join(f"{one['bytes'][n] / 2**20:.1f}" for n in (0, 1, -1))]
            lines.append(f"| {' | '.join(cells)} | {one['difference']:.0e} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Seconds of every way, and the cache's memory by number of chunks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (network, ways) in enumerate(results.items()):
        for number, name in enumerate(WAYS):
            bar = left.bar(
                4 * place + number, ways[name]["wall"], color=f"C{number}", label=name if not place else None
            )
            left.bar_label(bar, [f"{ways[name]['wall_ratio']:.2f}x"])
            if name != "uncached":
                held = [size / 2**20 for size in ways[name]["bytes"]]
                right.plot(range(1, len(held) + 1), held, marker="o", label=f"{network}, {name}")
    left.set_xticks([4 * place + 1 for place in range(len(results))], list(results))
    left.set(ylabel="seconds of the rollout")
    left.margins(y=0.15)
    right.margins(y=0.15)
    right.set(xlabel="chunks", ylabel="MiB of the cache", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def run(args: argparse.Namespace) -> None:
    """Measure, print, save."""
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tools.benchmark_report import machine

    shape = Shape(args.layers, args.hidden, args.heads, args.grid, args.given, args.chunk, args.chunks, args.steps)
    print(f"`python tools/benchmark_rollout.py {' '.join(sys.argv[1:])}`\n\n{machine('cpu', args.threads)}\n")
    print(f"{shape}; least seconds of {args.repeat} runs\n", flush=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(args.networks) * len(WAYS) * args.repeat * args.chunks)
        for network in args.networks:
            ways = ways_of(network, shape)
            # The first call of everything loads and allocates.
            for way in ways_of(network, shape, short=True).values():
                list(way())

            def advance(name: str, chunks: int, network: str = network) -> None:
                bar.update(task, description=f"{network}, {name}", advance=chunks)

            results[network] = measure(ways, args.repeat, advance)
    print(table(results))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        told = {"shape": shape.__dict__, "repeat": args.repeat, "threads": args.threads, "networks": results}
        (args.output / "rollout.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        draw(results, args.output / "rollout.png")


def main() -> int:
    """Entry point."""
    args = arguments()
    try:
        check(args)
        run(args)
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
