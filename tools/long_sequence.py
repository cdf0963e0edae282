#!/usr/bin/env python3
"""One training step on a sequence of the paper's full length, split over tensor and context parallel processes on this
machine's CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

EPILOG = """
Every process watches what its operations produce, in the forward pass, the backward pass and the optimizer, and reports
the largest tensor: a mask or scores of L x L elements would show.  Memory inside kernels does not pass that watch, so
the peak of the resident set is reported too.

examples:
  python tools/long_sequence.py  # 80 frames of 242 tokens through TP2 x CP2: 38,478 tokens
  python tools/long_sequence.py --tensor 1 --context 1  # the same in one process: the loss must be the same
  # seconds; dense attention, whose L x L tensors are found:
  python tools/long_sequence.py --clips 2,1 --grid 4,5 --attention reference
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", default="16,16,16,16,15,1", help="frames of each clip (default 16,16,16,16,15,1)")
    parser.add_argument(
        "--grid", default="12,20", help="patch rows and columns of a frame (default 12,20: 320x192 pixels)"
    )
    parser.add_argument("--tensor", type=int, default=2, help="tensor parallel size (default 2)")
    parser.add_argument("--context", type=int, default=2, help="context parallel size (default 2)")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers (default 2)")
    parser.add_argument("--heads", type=int, default=4, help="heads of 96 channels (default 4)")
    parser.add_argument("--recompute", default="none", help="parallel.recompute (default none)")
    parser.add_argument("--attention", default="ranged", help="attention backend (default ranged)")
    parser.add_argument("--json", type=paths.path, metavar="FILE", help="also write what every process reported")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def options(args: argparse.Namespace) -> list[str]:
    """The run's configuration."""
    width = 96 * args.heads
    return f"""train.platform=cpu train.precision=fp32 train.global_batch_size=1 train.threads=1
    model.num_layers={args.layers} model.hidden_size={width} model.ffn_hidden_size={width * 8 // 3}
    model.num_attention_heads={args.heads} model.position_table_size=192 attention.backend={args.attention}
    optimizer.lr=1e-4 parallel.tensor={args.tensor} parallel.context={args.context}
    parallel.recompute={args.recompute}""".split()


def work(args: argparse.Namespace) -> None:
    """One process of the run: a step, watched; leaves ``<rank>.json`` in ``args.worker``."""
    from tests.layouts import worker

    worker.platform()
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from tools.measuring.clock import process_memory

    class Watch(TorchDispatchMode):
        """Remembers the largest tensor that any operation produced, and counts those of attention's backward pass."""

        largest, shape, name, backward, seen = 0, (), "", 0, 0

        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = call(*args, **(kwargs or {}))
            self.seen += 1
            self.backward += "backward" in str(call)
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor) and value.numel() > self.largest:
                    self.largest, self.shape, self.name = value.numel(), tuple(value.shape), str(call)
            return result

    clips = tuple(int(part) for part in args.clips.split(","))
    rows, columns = (int(part) for part in args.grid.split(","))
    session = worker.start(config_from_dict(parse_overrides(options(args))), 4)
    shape = (sum(clips), 4, 2 * rows, 2 * columns)
    sample = Sample(key=1, name="long", mean=normal(1, "latents", shape), logvar=None, clips=clips)
    length = len(session.objective.layout(sample))
    before, started = process_memory("VmRSS"), time.perf_counter()
    with Watch() as watch:
        loss, norm = worker.step(session, [sample])
    report = {
        "tokens": length,
        "padded": length + -length % session.config.parallel.row_multiple,
        "loss": loss,
        "norm": norm,
        "seconds": time.perf_counter() - started,
        "before": before,
        "peak": process_memory("VmHWM"),
        "largest": watch.largest,
        "shape": watch.shape,
        "operation": watch.name,
        "operations": watch.seen,
        "backward": watch.backward,
    }
    (args.worker / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(report), encoding="utf-8")
    world.stop()


def launch(folder: Path, processes: int) -> None:
    """Run the same command under torchrun, with a clock on the screen; raises RuntimeError with the end of its output
    when it fails.
    """
    from rich.console import Console

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
        os.path.abspath(__file__),
        *sys.argv[1:],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as log, Console(stderr=True).status("starting") as status:
        process = subprocess.Popen(
            [*command, "--worker", str(folder)], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            status.update(
                f"one step in {processes} processes: {time.monotonic() - started:.0f} s; 38,478 tokens take "
                "some minutes on two cores"
            )
            time.sleep(0.5)
    if process.returncode:
        raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-3000:])


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown: one line per process."""
    first = reports[0]
    square = first["tokens"] ** 2
    tokens = f"{first['tokens']:,} tokens ({first['padded']:,} with padding)"
    head = f"{tokens}, loss {first['loss']:.6f}, gradient norm {first['norm']:.6f}, {first['seconds']:.0f} s\n"
    lines = [
        head,
        "| process | peak resident MiB | of it before the step | largest tensor | elements | share of L x L |",
        "|---|---|---|---|---|---|",
    ]
    for rank, one in enumerate(reports):
        size = " x ".join(map(str, one["shape"]))
        memory = f"{one['peak'] / 2**20:.0f} | {one['before'] / 2**20:.0f}"
        lines.append(
            f"| {rank} | {memory} | {size} (`{one['operation']}`) | {one['largest']:,} | "
            f"{one['largest'] / square:.4f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Entry point."""
    args = arguments()
    if args.worker:
        work(args)
        return 0
    processes = args.tensor * args.context
    with tempfile.TemporaryDirectory() as scratch:
        try:
            launch(Path(scratch), processes)
        except RuntimeError as error:
            print(f"error: the run failed:\n{error}", file=sys.stderr)
            return 1
        reports = [
            json.loads((Path(scratch) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)
        ]
    print(table(reports))
    if args.json:
        args.json.write_text(json.dumps(reports), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
