#!/usr/bin/env python3
"""Compare this package with recorded numbers of an original implementation, for every case of a folder."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code
from tools.parity import nbp, nbp_transformer, vidgpt, vidgpt_factorised  # noqa: E402

if TYPE_CHECKING:
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.objective.recorded import Report

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
"""What is compared where no folder is given, with nbp/ and vidgpt/ in it; their README.md describe the formats."""
ALONE = "of this kind nothing is compared under context parallelism, only frame as prompt is"

EPILOG = """
A folder holds files of cases (.json with .safetensors beside it; missing ones are skipped) and one folder per
checkpoint that a case names.  Its kind is told by its files: next clip diffusion has masks_positions, forward_train,
loss, sampler and components (tests/golden/README.md); next block prediction with its tokenizer has fsq, tokenizer,
masks_targets and others (tests/golden/nbp/README.md); frame as prompt has checkpoints with relative_tpe_mode, forward,
loss, sampler and others (tests/golden/vidgpt/README.md), and is compared through the stand-alone network and through
the megatron-core one; split over processes through the latter alone.  What of a folder is not checked is said.
Exit status: 0 when every quantity is within its limit, 1 when one is not, 2 when the folder cannot be read.

examples:
  python tools/check_parity.py                                    the numbers that come with this project
  python tools/check_parity.py --tensor-parallel 2                the same, split over two processes
  python tools/check_parity.py --context-parallel 2               split along tokens: frame as prompt alone
  python tools/check_parity.py tests/golden/nbp                   those of next block prediction alone
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
        help="folder with the recorded cases (default: tests/golden, its nbp and its vidgpt)",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="tensor parallel processes (default 1); starts torchrun itself",
    )
    parser.add_argument(
        "--context-parallel",
        type=int,
        default=1,
        metavar="N",
        help="context parallel processes (default 1), of frame as prompt alone; starts torchrun itself",
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


def compared_folders(args: argparse.Namespace) -> list[Path]:
    """Which are compared, in this layout; those that are not are named in a line each."""
    for name in ("tensor_parallel", "context_parallel"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    folders = [args.folder] if args.folder else [GOLDEN, GOLDEN / "nbp", GOLDEN / "vidgpt"]
    if args.context_parallel == 1:
        return folders
    found = [folder for folder in folders if vidgpt.is_kind(folder)]
    if not found:
        raise UserError(f"{folders[0]}: {ALONE}; leave out --context-parallel")
    if "RANK" not in os.environ:
        print("".join(f"{folder}: {ALONE}\n" for folder in folders if folder not in found), end="", flush=True)
    return found


def check(folder: Path, parallel: ParallelConfig, attention: str) -> bool:
    """Every case of a folder; prints the worst error of each quantity.  Whether all are within their limits."""
    from megatron_videogpt.objective.recorded import Report
    from megatron_videogpt.platforms import world

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    unchecked: list[str] = []
    if vidgpt.is_kind(folder):
        return check_frame_prompt(folder, parallel, attention)
    if nbp.is_kind(folder):
        report = Report({**nbp.LIMITS, **nbp_transformer.limits()})
        unchecked = nbp.check_folder(folder, report)
        nbp_transformer.check_transformer(folder, parallel.tensor, attention, report)
    else:
        report = check_next_clip(folder, parallel.tensor, attention)
    if not report.compared and not unchecked:
        raise UserError(
            f"{folder}: no cases found; expected files such as forward_train.json (see tests/golden/README.md) or "
            "tokenizer.json (see tests/golden/nbp/README.md)"
        )
    if world.is_rank_zero():
        print_report(str(folder), report, ", ".join(unchecked))
    return not report.failures()


def check_frame_prompt(folder: Path, parallel: ParallelConfig, attention: str) -> bool:
    """Through the stand-alone network, which does not split, and the megatron-core one."""
    from megatron_videogpt.objective.recorded import Report
    from megatron_videogpt.platforms import world

    reports, split = [], parallel.tensor * parallel.context > 1
    if not split:
        reports.append(Report(vidgpt.LIMITS))
        unchecked = vidgpt.check_folder(folder, reports[0])
        print_report(f"{folder}, the stand-alone network", reports[0], ", ".join(unchecked))
    elif world.is_rank_zero():
        print(f"{folder}: the stand-alone network does not split, and is compared in one process alone")
    reports.append(Report(vidgpt_factorised.limits()))
    skipped = vidgpt_factorised.check_network(folder, parallel, attention, reports[-1])
    if world.is_rank_zero():
        names = ", ".join(dict.fromkeys(skipped))
        why = "rotary positions, which only the stand-alone network has"
        print_report(f"{folder}, the megatron-core network", reports[-1], f"{names} ({why})" if names else "")
    return not any(report.failures() for report in reports)


def check_next_clip(folder: Path, tensor_parallel: int, attention: str) -> Report:
    """Every case of next clip diffusion, through the megatron-core model."""
    import torch

    from megatron_videogpt.attention.choice import select
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.convert.released import read_model_config, tensor_source
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.objective.next_clip import parity
    from megatron_videogpt.objective.recorded import Report
    from megatron_videogpt.platforms import activate

    platform, report = activate("cpu"), Report(parity.LIMITS)

    def opened(path, hint_ids):  # type: ignore[no-untyped-def]
        return *read_model_config(path), tensor_source(path, hint_ids)

    def build(config, channels):  # type: ignore[no-untyped-def]
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

    parity.check_folder(folder, ParallelConfig(tensor=tensor_parallel), opened, build, report)
    return report


def start(tensor: int, context: int) -> ParallelConfig:
    """Process groups on the CPU."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.platforms import world

    parallel = ParallelConfig(tensor=tensor, context=context)
    world.start(platform, parallel)
    return parallel


def stop() -> None:
    """Leave the process groups."""
    from megatron_videogpt.platforms import world

    world.stop()


def print_report(title: str, report: Report, unchecked: str) -> None:
    """A table of worst errors, then one line per failure."""
    print(f"{title}\n{'quantity':22} {'compared':>8} {'worst error':>12} {'limit':>8}  worst case")
    for name, (error, case) in report.worst.items():
        print(f"{name:22} {report.compared[name]:8} {error:12.3g} {report.limits[name]:8.0e}  {case}")
    if unchecked:
        print(f"not checked: {unchecked}")
    print("\n".join(f"FAILED {line}" for line in report.failures()) or "all within limits")


def main() -> int:
    """Entry point."""
    args = arguments()
    processes = args.tensor_parallel * args.context_parallel
    try:
        folders = compared_folders(args)
        if processes > 1 and "RANK" not in os.environ:
            return launch(processes)
        warnings.filterwarnings("ignore", module="megatron")
        parallel = start(args.tensor_parallel, args.context_parallel)
        good = [check(folder, parallel, args.attention) for folder in folders]
    except UserError as error:
        return exit_code(error)
    stop()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
