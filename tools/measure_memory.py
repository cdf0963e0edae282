"""Peak memory of real training steps against the estimate: prints a Markdown table.

    python tools/measure_memory.py                       every run of the table (CPU, 15 minutes on two idle cores)
    python tools/measure_memory.py --only fp32 TP2       runs whose name contains one of these texts
    python tools/measure_memory.py --list

Each run is a fresh torchrun launch that takes two optimizer steps (the optimizer's state exists from the second one
on).  On a CPU, memory is the growth of the resident set from before the model is built to the highest the kernel has
seen; on a GPU it is CUDA's own counter.  The fullest rank counts on both sides.  Estimates come from `plan.memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

CHANNELS, GRID = 4, (8, 8)
"""Latent channels, and patches of a frame by rows and columns."""

# glibc keeps freed memory for later, which would count as resident: with these, every block of 64 KiB or more is a
# mapping of its own that goes back to the system when it is freed, as CUDA's counters do not count freed memory either.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Run:
    """One measured launch.  width: hidden size; frames: of each packed sample, in clips of two; samples: packed per
    row; rows: micro-batches of a step on each data parallel rank; options: further overrides.
    """

    name: str
    processes: int = 1
    precision: str = "fp32"
    layers: int = 6
    width: int = 512
    frames: int = 8
    samples: int = 6
    rows: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """As nested tables of a TOML file."""
        parallel = {key: value for key, value in self.options.items() if not key.startswith("model.")}
        model = {key.partition(".")[2]: value for key, value in self.options.items() if key.startswith("model.")}
        replicas = self.processes // (
            parallel.get("tensor", 1) * parallel.get("context", 1) * parallel.get("pipeline", 1)
        )
        return {
            "model": {
                "num_layers": self.layers,
                "hidden_size": self.width,
                "ffn_hidden_size": self.width * 8 // 3 // 16 * 16,
                "num_attention_heads": 8,
                **model,
            },
            "parallel": parallel,
            "train": {
                "precision": self.precision,
                "micro_batch_size": self.samples,
                "global_batch_size": self.samples * self.rows * replicas,
            },
        }

    def clips(self) -> list[int]:
        """Frames of the clips of every sample."""
        return [2] * (self.frames // 2)


SAMPLES = {"none": 6, "selective": 8, "mlp": 10, "full": 7}
"""Packed into a row, so that every run grows by 1.5 GB or more; policies that keep little get a wider model too."""
WIDE = {"layers": 8, "width": 768}
RUNS = [
    *(Run(f"fp32 {name}", samples=SAMPLES[name], options={"recompute": name}) for name in ("none", "selective", "mlp")),
    Run("fp32 full", samples=7, options={"recompute": "full"}, **WIDE),
    Run("fp32 full, 4 of 6 layers", samples=12, options={"recompute": "full", "recompute_layers": 4}),
    Run("bf16 none", precision="bf16", samples=10, options={"recompute": "none"}),
    Run("bf16 selective", precision="bf16", samples=14, options={"recompute": "selective"}),
    Run("bf16 full", precision="bf16", samples=10, options={"recompute": "full"}, **WIDE),
    Run("TP2+SP fp32 none", 2, samples=12, options={"tensor": 2, "sequence": True}),
    Run("TP2+SP fp32 selective", 2, samples=16, options={"tensor": 2, "sequence": True, "recompute": "selective"}),
    Run("TP2 fp32 none", 2, samples=9, options={"tensor": 2}),
    Run("PP2 fp32 none", 2, samples=6, rows=3, options={"pipeline": 2}),
    Run("PP2 fp32 full", 2, samples=7, rows=2, options={"pipeline": 2, "recompute": "full"}, layers=12, width=768),
    Run("PP2xVPP2 fp32 none", 2, layers=4, samples=6, rows=4, options={"pipeline": 2, "virtual_pipeline": 2}),
    Run("CP2 fp32 none", 2, samples=12, options={"context": 2}),
    Run(
        "CP2 bf16 selective",
        2,
        precision="bf16",
        layers=8,
        samples=24,
        options={"context": 2, "recompute": "selective"},
    ),
    Run("DP2 fp32 none", 2, samples=6),
    Run("DP2 bf16 none", 2, precision="bf16", samples=10),
]


def worker(asked: Path, answer: Path) -> None:
    """One rank of one run: two steps, then rank 0 writes the bytes of all ranks."""
    from megatron_videogpt.platforms import activate

    platform = activate("auto")
    import torch
    from megatron.core import parallel_state

    from megatron_videogpt.config.load import config_from_dict
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks
    from megatron_videogpt.train.optimizer import build_optimizer, wrap
    from megatron_videogpt.train.step import train_step

    run = Run(**json.loads(asked.read_text(encoding="utf-8")))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = config_from_dict(run.config())
    world.start(platform, config.parallel)
    objective, patch = build_objective(config), config.model.patch_size
    size = (run.frames, CHANNELS, GRID[0] * patch, GRID[1] * patch)
    context = (parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    rows = []
    for number in range(run.rows):
        samples = [
            Sample(key=n, name=str(n), mean=normal(n, "latents", size), logvar=None, clips=run.clips())
            for n in range(number, number + run.samples)
        ]
        rows.append(objective.prepare(samples, config.parallel.row_multiple).to(platform.device).shard(*context))
    # Libraries make their buffers at the first call.
    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()
    before = resident() if platform.name == "cpu" else 0
    chunks = wrap(config, build_chunks(config, CHANNELS, platform))
    optimizer = build_optimizer(config, chunks)
    started = time.perf_counter()
    for _ in range(2):
        train_step(chunks, optimizer, objective, rows)
    grown = torch.tensor([float(platform.memory_peak() - before)])
    everyone = [torch.zeros(1) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, grown) if platform.name == "cpu" else everyone[0].copy_(grown)
    if torch.distributed.get_rank() == 0:
        answer.write_text(
            json.dumps(
                {
                    "bytes": [float(x) for x in everyone],
                    "seconds": time.perf_counter() - started,
                    "length": rows[0].length,
                }
            ),
            encoding="utf-8",
        )
    world.stop()


def resident() -> int:
    """Bytes of this process in physical memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def estimate(run: Run) -> Any:
    """`Memory` of the fullest rank."""
    from megatron_videogpt.config.load import config_from_dict
    from megatron_videogpt.objective.next_clip.work import clip_work
    from megatron_videogpt.plan.memory import rank_memory

    work = clip_work(run.clips(), GRID[0] * GRID[1]).times(run.samples)
    return rank_memory(config_from_dict(run.config()), CHANNELS, run.processes, work)


def measure(run: Run) -> dict[str, Any]:
    """Launch a run: {"bytes": growth of each rank, "seconds": of both steps, "length": tokens of a row}."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "run.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(vars(run)), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={run.processes}",
            "--standalone",
            __file__,
            "--worker",
            str(asked),
            str(answer),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONWARNINGS": "ignore",
            **MALLOC,
        }
        done = subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            raise RuntimeError(f"{run.name}: the launch failed\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="runs whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print the names and the estimates only")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker)
        return
    print(
        "| run | tokens | states | activations | working | estimate GB | measured GB | ratio | seconds "
        "|\n|---|---|---|---|---|---|---|---|---|"
    )
    for run in RUNS:
        if args.only and not any(text in run.name for text in args.only):
            continue
        memory = estimate(run)
        parts = (
            f"{memory.states / 1e9:.2f} | {memory.activations / 1e9:.2f} | {memory.working / 1e9:.2f} | "
            f"{memory.total / 1e9:.2f}"
        )
        if args.list:
            print(f"| {run.name} | | {parts} | | | |")
            continue
        result = measure(run)
        peak = max(result["bytes"])
        print(
            f"| {run.name} | {result['length']:,} | {parts} | {peak / 1e9:.2f} | {memory.total / peak:.2f} | "
            f"{result['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
