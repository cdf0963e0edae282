"""Attention backends side by side in one run: forward, backward, peak extra memory.

    python tools/benchmark_attention.py                      # about 8K tokens on 2 CPU threads
    python tools/benchmark_attention.py --packed 4 --frames 16 --grid 4,4 --max-clip 1 --heads 4 --head-dim 64

The baseline `sdpa` is torch's scaled_dot_product_attention with the mask as a dense boolean matrix.  Repetitions alternate between the backends and the
table shows medians, so that the ratio is fair on a busy machine.  OMP_WAIT_POLICY=PASSIVE is set unless the environment says otherwise.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Threads that wait must sleep: spinning ones lose whole time slices where other processes want the cores too.  Read when torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.attention import BACKENDS, attend, select  # noqa: E402
from megatron_videogpt.sequence.intervals import attended_pairs, dense_mask  # noqa: E402
from megatron_videogpt.sequence.layout import layout, pack, training_shape  # noqa: E402

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a sample has at least, where --frames is not given")
    parser.add_argument("--frames", type=int, help="video frames of a sample; the number of tokens follows")
    parser.add_argument("--grid", default="12,20", help="patch rows and columns of a frame (12,20: 320x192 pixels)")
    parser.add_argument("--min-clip", type=int, default=1, help="shortest clip of the random split")
    parser.add_argument("--max-clip", type=int, default=4, help="longest clip of the random split")
    parser.add_argument("--packed", type=int, default=1, help="samples in a row")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="key-value heads; default: as many as heads")
    parser.add_argument("--head-dim", type=int, default=96)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--backends", default="sdpa,ranged", help=f"comma-separated: sdpa, {', '.join(BACKENDS)}; ratios are against the first")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions of each, alternating")
    parser.add_argument("--seed", type=int, default=0, help="of the clip split and the numbers")
    parser.add_argument("--plot", type=Path, help="also draw the times into this PNG")
    options = parser.parse_args()
    unknown = set(options.backends.split(",")) - {"sdpa", *BACKENDS}
    if unknown:
        parser.error(f"--backends holds {sorted(unknown)}, but knows sdpa, {', '.join(BACKENDS)}")
    if not 1 <= options.min_clip <= options.max_clip:
        parser.error(f"--min-clip {options.min_clip} and --max-clip {options.max_clip}: clips have at least 1 frame, and the range must not be empty")
    return options


def random_split(frames: int, shortest: int, longest: int, draw: random.Random) -> tuple[int, ...]:
    """Clip lengths, uniform on the given range, that add up to `frames` (the last one takes what is left)."""
    clips: list[int] = []
    while frames:
        clips.append(min(frames, draw.randint(shortest, longest)))
        frames -= clips[-1]
    return tuple(clips)


def intervals_of(options: argparse.Namespace) -> tuple[Tensor, str]:
    """The mask to measure, and its description."""
    draw = random.Random(options.seed)
    grid = tuple(int(x) for x in options.grid.split(","))
    samples = []
    for _ in range(options.packed):
        frames = options.frames or 1
        while True:
            clips = random_split(frames, options.min_clip, options.max_clip, random.Random(draw.random()))
            sample = layout(training_shape(clips, grid))
            if options.frames or len(sample) >= options.tokens:
                break
            frames += 1
        samples.append((clips, sample))
    intervals = pack([sample for _, sample in samples]).intervals
    length, density = len(intervals), attended_pairs(intervals) / len(intervals) ** 2
    clips = "; ".join(" ".join(map(str, clips)) for clips, _ in samples)
    return intervals, f"{length} tokens, frame block {grid[0] * grid[1] + 2}, density {density:.3f}, clips {clips}"


def kernel(name: str, intervals: Tensor, scale: float, device: str) -> Kernel:
    """One backend as a function of q, k, v; the baseline's dense mask is built beforehand, untimed."""
    if name != "sdpa":
        return lambda q, k, v: attend(name, q, k, v, intervals, scale)
    mask = dense_mask(intervals)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])[0].transpose(0, 1)

    return sdpa


def clock(device: str) -> float:
    """Seconds, after all that was started has ended."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def once(run: Kernel, inputs: list[Tensor], device: str) -> tuple[float, float]:
    """Seconds of one forward and one backward."""
    start = clock(device)
    out = run(*inputs[:3])
    middle = clock(device)
    torch.autograd.grad(out, inputs[:3], inputs[3])
    return middle - start, clock(device) - middle


def resident() -> int:
    """Bytes of memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(run: Kernel, inputs: list[Tensor], device: str) -> float:
    """Most MiB that one forward and backward held beyond its inputs; on CPU sampled each millisecond, nan where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(run, inputs, device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/statm").exists():
        return float("nan")
    before, seen, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    once(run, inputs, device)
    done.set()
    watcher.join()
    return max(0, max(seen) - before) / 2**20


def plot(path: Path, names: list[str], medians: dict[str, tuple[float, float]], title: str) -> None:
    """Bars of forward and backward time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 1 + 0.6 * len(names)))
    forward, backward = ([medians[name][i] * 1e3 for name in names] for i in (0, 1))
    axes.barh(names, forward, label="forward")
    axes.barh(names, backward, left=forward, label="backward")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title(title, fontsize=9)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and print a Markdown table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    device, dtype = options.device, getattr(torch, options.dtype)
    intervals, description = intervals_of(options)
    intervals = intervals.to(device)
    names = options.backends.split(",")
    for name in names:
        if name != "sdpa":
            select(name, device, dtype, options.head_dim)
    noise, kv_heads = torch.Generator().manual_seed(options.seed), options.kv_heads or options.heads
    shapes = [(len(intervals), heads, options.head_dim) for heads in (options.heads, kv_heads, kv_heads, options.heads)]
    inputs = [torch.randn(shape, generator=noise).to(device, dtype).requires_grad_(number < 3) for number, shape in enumerate(shapes)]
    kernels = {name: kernel(name, intervals, options.head_dim**-0.5, device) for name in names}
    memory = {name: peak_memory(run, inputs, device) for name, run in kernels.items()}  # doubles as the warm-up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(options.repeat):
        for name, run in kernels.items():
            times[name].append(once(run, inputs, device))
    medians = {name: (statistics.median(t[0] for t in times[name]), statistics.median(t[1] for t in times[name])) for name in names}

    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {options.threads} thread(s)"
    title = f"{description}; {options.heads} heads ({kv_heads} key-value) of {options.head_dim}, {options.dtype}"
    print(f"`python tools/benchmark_attention.py {' '.join(sys.argv[1:])}`\n\n{machine}, torch {torch.__version__}: {title}\n")
    print("| backend | forward ms | backward ms | both ms | speed | peak extra MiB |\n|---|---|---|---|---|---|")
    baseline = sum(medians[names[0]])
    for name in names:
        forward, backward = (1e3 * x for x in medians[name])
        print(f"| {name} | {forward:.1f} | {backward:.1f} | {forward + backward:.1f} | {baseline / sum(medians[name]):.2f}x | {memory[name]:.0f} |")
    if options.plot:
        plot(options.plot, names, medians, title[:90])


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmark_attention: {error}")
