r"""Peak memory of real training steps against the estimate: prints a Markdown table.

    python tools/measure_memory.py                       every run of the table (CPU, 15 minutes on two idle cores)
    python tools/measure_memory.py --only fp32 TP2       runs whose name contains one of these texts
    python tools/measure_memory.py --list
    python tools/measure_memory.py --config examples/nbp/k600_700m.toml --processes 2 model.num_layers=1 \
        parallel.tensor=2 train.global_batch_size=2   its longest rows, and what `check` estimates

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
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from tools.memory_runs import RUNS, Recipe, Run, of_file  # noqa: E402

# glibc keeps freed memory for later, which would count as resident: with these, every block of 64 KiB or more is a
# mapping of its own that goes back to the system when it is freed, as CUDA's counters do not count freed memory either.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


def worker(asked: Path, answer: Path) -> None:
    """One rank of one run: two steps, then rank 0 writes the bytes of all ranks."""
    from megatron_videogpt.platforms import activate

    platform = activate("auto")
    import torch
    from megatron.core import parallel_state

    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.plan.memory import micro_batches
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks
    from megatron_videogpt.train.optimizer import build_optimizer, wrap
    from megatron_videogpt.train.step import train_step

    run = of_file(asked)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = run.settings()
    world.start(platform, config.parallel)
    objective, clips = build_objective(config), tuple(run.clips(config))
    # Zeros are latents of every codec, codes too.
    latents = torch.zeros(sum(clips), *run.latents(config))
    words = run.text(config)
    text = torch.zeros(words) if words else None
    context = (parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    rows = []
    for number in range(micro_batches(config, run.processes)):
        samples = [
            Sample(key=n, name=str(n), mean=latents, logvar=None, clips=clips, condition=text)
            for n in range(number, number + config.train.micro_batch_size)
        ]
        rows.append(objective.prepare(samples, config.parallel.row_multiple).to(platform.device).shard(*context))
    # Libraries make their buffers at the first call.
    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()
    before = resident() if platform.name == "cpu" else 0
    chunks = wrap(config, build_chunks(config, len(latents[0]), platform))
    optimizer = build_optimizer(config, chunks)
    started = time.perf_counter()
    for _ in range(2):
        train_step(chunks, optimizer, objective, rows)
    grown = torch.tensor([float(platform.memory_peak() - before)], device=platform.device)
    everyone = [torch.zeros_like(grown) for _ in range(run.processes)]
    torch.distributed.all_gather(everyone, grown)
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


def estimate(run: Run | Recipe) -> Any:
    """`Memory` of the fullest rank; activations as the objective counts them, where its layers are of its own."""
    from megatron_videogpt.config.derived import frame_side
    from megatron_videogpt.plan.estimate import objective_work
    from megatron_videogpt.plan.memory import rank_memory

    config = run.settings()
    memory = rank_memory(config, run.latents(config)[0], run.processes, run.work(config))
    own = getattr(objective_work(config), "activations", None)
    if own is None:
        return memory
    found = own((frame_side(config),) * 2)
    return replace(memory, activations=found.kept, working=found.working)


def measure(run: Run | Recipe) -> dict[str, Any]:
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
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            raise RuntimeError(f"{run.name}: the launch failed\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def table(runs: list[Run | Recipe], listed: bool) -> None:
    """Print the table's rows; listed: without measuring."""
    memories = [estimate(run) for run in runs]
    print(
        "| run | tokens | states | activations | working | update | estimate GB | measured GB | ratio | seconds "
        "|\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for run, memory in zip(runs, memories):
        parts = (
            f"{memory.states / 1e9:.2f} | {memory.activations / 1e9:.2f} | {memory.working / 1e9:.2f} | "
            f"{memory.update / 1e9:.2f} | {memory.total / 1e9:.2f}"
        )
        if listed:
            print(f"| {run.name} | | {parts} | | | |")
            continue
        result = measure(run)
        peak = max(result["bytes"])
        print(
            f"| {run.name} | {result['length']:,} | {parts} | {peak / 1e9:.2f} | {memory.total / peak:.2f} | "
            f"{result['seconds']:.0f} |",
            flush=True,
        )
        if isinstance(run, Recipe):
            each = ", ".join(f"{grown / 1e9:.3f}" for grown in result["bytes"])
            print(f"\nmeasured GB by rank: {each}; estimate of the fullest: {memory.total / 1e9:.3f}", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="runs whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print the names and the estimates only")
    parser.add_argument("--config", type=paths.path, metavar="FILE", help="measure this configuration instead")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of --config")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="of --config")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker)
        return 0
    if args.overrides and not args.config:
        parser.error("overrides belong to --config FILE")
    chosen = [run for run in RUNS if not args.only or any(text in run.name for text in args.only)]
    try:
        table([Recipe(str(args.config), args.overrides, args.processes)] if args.config else [*chosen], args.list)
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
