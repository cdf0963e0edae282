#!/usr/bin/env python3
"""Compare the megatron-core model with recorded numbers of the original, for every case of a folder."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
"""What is compared where no folder is given; its README.md describes the format."""

EPILOG = """
The folder holds masks_positions, forward_train, loss, sampler and components (.json with .safetensors beside it;
missing ones are skipped) and one folder per checkpoint that a case names; tests/golden/README.md describes the format.
Exit status: 0 when every quantity is within its limit, 1 when one is not, 2 when the folder cannot be read.

examples:
  python tools/check_parity.py                                    the numbers that come with this project
  python tools/check_parity.py --tensor-parallel 2                the same, split over two processes
  python tools/check_parity.py /data/recorded                     others of the same format
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        type=paths.path,
        nargs="?",
        default=GOLDEN,
        help="folder with the recorded cases (default: tests/golden)",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="tensor parallel processes (default 1); starts torchrun itself",
    )
    parser.add_argument("--attention", default="auto", help="attention backend (default auto)")
    return parser.parse_args()


def launch(processes: int) -> int:
    """Run this command again under torchrun; returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
        os.path.abspath(__file__),
        *sys.argv[1:],
    ]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}, check=False
    ).returncode


def check(folder: Path, tensor_parallel: int, attention: str) -> int:
    """Every case; prints the worst error of each quantity."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    import torch

    from megatron_videogpt.attention.choice import select
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.convert.released import read_model_config, tensor_source
    from megatron_videogpt.objective.next_clip import parity, parity_cases
    from megatron_videogpt.platforms import world

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    layout = ParallelConfig(tensor=tensor_parallel)
    world.start(platform, layout)
    report = parity_cases.Report()

    def opened(path, hint_ids):  # type: ignore[no-untyped-def]
        return *read_model_config(path), tensor_source(path, hint_ids)

    def build(config, channels):  # type: ignore[no-untyped-def]
        from megatron_videogpt.objective.build import build_network

        for name, value in (
            ("num_attention_heads", config.model.num_attention_heads),
            ("ffn_hidden_size", config.model.ffn_hidden_size),
        ):
            if value % tensor_parallel:
                raise UserError(
                    f"--tensor-parallel {tensor_parallel} does not divide {name}={value} of a checkpoint in {folder}"
                )
        backend, _ = select(attention, "cpu", torch.float32, config.model.head_dim)
        return build_network(config, channels, platform, backend)

    parity.check_folder(folder, layout, opened, build, report)
    if not report.compared:
        raise UserError(
            f"{folder}: no cases found; expected files such as forward_train.json (see tests/golden/README.md)"
        )
    failures = report.failures()
    if world.is_rank_zero():
        print_report(report, parity_cases.LIMITS, failures)
    world.stop()
    return 1 if failures else 0


def print_report(report, limits, failures) -> None:  # type: ignore[no-untyped-def]
    """A table of worst errors, then one line per failure."""
    print(f"{'quantity':18} {'compared':>8} {'worst error':>12} {'limit':>8}  worst case")
    for name, (error, case) in report.worst.items():
        print(f"{name:18} {report.compared[name]:8} {error:12.3g} {limits[name]:8.0e}  {case}")
    print("\n".join(f"FAILED {line}" for line in failures) or "all within limits")


def main() -> int:
    """Entry point."""
    args = arguments()
    if args.tensor_parallel > 1 and "RANK" not in os.environ:
        return launch(args.tensor_parallel)
    warnings.filterwarnings("ignore", module="megatron")
    try:
        return check(args.folder, args.tensor_parallel, args.attention)
    except UserError as error:
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
