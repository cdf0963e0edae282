#!/usr/bin/env python3
"""Memory and time of converting a checkpoint of the released model's shape (random bf16 weights) to a run and back, and
whether it comes back bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code
from tools.measuring.report import markdown

REPOSITORY = Path(__file__).resolve().parents[1]

EPILOG = """
Writes a Hugging Face folder with the key names, shapes and text table of the released model
(examples/videogpt/base.toml, or fewer layers), converts it with tools/convert_checkpoint.py from-hf and to-hf as
separate processes, and compares every tensor.  The full size needs 24 GB of disk.

What is measured, several times a second, over a command and all its child processes together:
  own memory     anonymous and shared memory (Pss_Anon + Pss_Shmem of /proc/PID/smaps_rollup): what the machine must
                 have, or the command is killed
  with files     that and the pages of mapped files that are resident (Pss), which the kernel drops when memory runs
                 short
  VmHWM          the kernel's own highest resident set of each process, summed: free of sampling, but mapped files
                 count, and what processes share
                 counts for each of them, so that it is far above the truth where a converter forks to write
Bytes that were read or written without mapping lie in the system's page cache and count nowhere here.

Exit status: 0, 1 when own memory exceeds the limit or a tensor differs, 2 when a conversion cannot run.

examples:
  python tools/benchmark_conversion.py                     the full size, 3.8 billion parameters
  python tools/benchmark_conversion.py --layers 4 --keep   a smaller one, whose folders stay
"""
VOCABULARY, CHANNELS = 32064, 4
HINTS = {"<|diffusion|>": 32011, "<img>": 32012, "</img>": 32013}
GB = 1e9


@dataclass
class Peak:
    """Highest sums over a tree of processes, in bytes; ``highest`` has the VmHWM of each process."""

    own: int = 0
    with_files: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        self.highest: dict[int, int] = {}

    def sample(self, root: int) -> None:
        """One look at the processes; some may end meanwhile."""
        own = everything = 0
        for pid in tree(root):
            try:
                fields = kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
                self.highest[pid] = kilobytes(Path(f"/proc/{pid}/status"))["VmHWM"]
            except (OSError, KeyError):
                continue
            own += fields["Pss_Anon"] + fields["Pss_Shmem"]
            everything += fields["Pss"]
        self.own, self.with_files, self.samples = max(self.own, own), max(self.with_files, everything), self.samples + 1


def kilobytes(path: Path) -> dict[str, int]:
    """The lines ``Name:  123 kB`` of a /proc file, in bytes."""
    lines = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text(encoding="utf-8").split()]
            except OSError:
                continue
    return found


def measured(command: list[str]) -> tuple[Peak, float]:
    """Run a command; its peak and seconds.  ValueError when it fails."""
    peak, began = Peak(), time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            peak.sample(process.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
        ended.set()
        thread.join()
    if code:
        raise UserError(f"{' '.join(command)} ended with exit code {code}; what it says is above")
    return peak, time.perf_counter() - began


def make_release(folder: Path, layers: int, max_bytes: int) -> int:
    """Write the folder; returns its bytes of tensors."""
    import torch

    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.convert.table import EMBED_TOKENS, POSITION_TABLE, parameters
    from megatron_videogpt.convert.tensor_files import Entry, write_tensors

    model = replace(load_config(REPOSITORY / "examples" / "videogpt" / "base.toml").model, num_layers=layers)
    shapes: dict[str, tuple[int, ...]] = {POSITION_TABLE: (1, model.position_table_size**2, model.hidden_size)}
    shapes |= {
        entry.hf: (VOCABULARY, model.hidden_size) if entry.hf == EMBED_TOKENS else entry.shape(model, CHANNELS)
        for entry in parameters(model)
    }
    generator = torch.Generator().manual_seed(0)
    entries = [Entry(key, shape, torch.bfloat16, lambda shape=shape: draw(shape)) for key, shape in shapes.items()]  # type: ignore[misc]

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    folder.mkdir(parents=True)
    fields = asdict(model)
    config: dict[str, Any] = {
        **{
            "model_type": "phi3",
            "vocab_size": VOCABULARY,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
        },
        **{
            "num_hidden_layers": layers,
            "intermediate_size": model.ffn_hidden_size,
            "num_key_value_heads": model.kv_heads,
            "rms_norm_eps": model.norm_epsilon,
        },
        **{key: fields[key] for key in ("hidden_size", "num_attention_heads", "rope_theta", "rope_scaling")},
        **{key: fields[key] for key in ("max_position_embeddings", "original_max_position_embeddings")},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(HINTS), encoding="utf-8")
    write_tensors(folder, entries, max_bytes)
    return sum(entry.size for entry in entries)


def benchmark(args: argparse.Namespace, work: Path) -> int:
    """All steps; prints the table."""
    convert = [sys.executable, str(REPOSITORY / "tools" / "convert_checkpoint.py")]
    shard = ["--max-shard-size", f"{args.max_shard_gb}GB"]
    layout = ["--tensor", str(args.tensor), "--pipeline", str(args.pipeline)]
    source, run, back = work / "release", work / "run", work / "back"
    print(f"writing random weights of {args.layers} layers to {source}", file=sys.stderr, flush=True)
    size = make_release(source, args.layers, round(args.max_shard_gb * GB))
    rows, largest = [], 0
    for name, command in (
        ("from-hf", [*convert, "from-hf", str(source), "--output", str(run), *layout]),
        ("to-hf", [*convert, "to-hf", str(run), "--output", str(back), *shard]),
    ):
        peak, seconds = measured(command)
        largest = max(largest, peak.own)
        sizes = (peak.own, peak.with_files, sum(peak.highest.values()))
        memory = [f"{value / GB:.2f} GB" for value in sizes]
        rows.append([name, f"{len(peak.highest)}", f"{seconds:.0f} s", *memory, f"{peak.samples}"])
    print("comparing", file=sys.stderr, flush=True)
    from megatron_videogpt.convert.compare import different

    wrong = different(source, back)
    print(
        f"\n{size / GB:.2f} GB of bf16 tensors in {len(list(source.glob('*.safetensors')))} files, "
        f"{args.layers} layers; to a run of"
    )
    print(f"TP{args.tensor} x PP{args.pipeline} and back\n")
    print(markdown(("step", "processes", "time", "own memory", "with files", "VmHWM", "samples"), rows))
    differing = f"{len(wrong)} tensors DIFFER, such as {', '.join(wrong[:5])}"
    print(f"\n{differing if wrong else 'every tensor is bit-equal'}")
    fits = largest <= args.limit_gb * GB
    print(f"own memory {largest / GB:.2f} GB at most, {'within' if fits else 'OVER'} the limit of {args.limit_gb:g} GB")
    return 0 if fits and not wrong else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layers", type=int, default=32, metavar="N", help="decoder layers; the released model has 32 (default)"
    )
    parser.add_argument(
        "--folder",
        type=paths.path,
        metavar="FOLDER",
        help="where to work (default: a new folder in the system's temporary one)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders there")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor parallel size of the run (1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline parallel size of the run (1)")
    parser.add_argument(
        "--max-shard-gb", type=float, default=5.0, metavar="GB", help="largest file of the Hugging Face folders (5)"
    )
    parser.add_argument(
        "--limit-gb", type=float, default=12.0, metavar="GB", help="own memory that must be enough (12)"
    )
    args = parser.parse_args()
    if args.layers < 1 or args.max_shard_gb <= 0:
        parser.error("--layers and --max-shard-gb: expected numbers above 0")
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"--folder {args.folder}: no such folder")
    work = Path(tempfile.mkdtemp(prefix="conversion-", dir=args.folder))
    needed, free = 3 * (0.22 * args.layers + 0.6) * GB, shutil.disk_usage(work).free
    try:
        if free < needed:
            raise UserError(
                f"{work}: {free / GB:.0f} GB free, {needed / GB:.0f} GB needed; name another place with "
                "--folder, or use fewer --layers"
            )
        return benchmark(args, work)
    except (UserError, OSError) as error:
        return exit_code(error)
    finally:
        if args.keep:
            print(f"kept: {work}", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
