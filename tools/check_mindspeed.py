#!/usr/bin/env python3
"""Does a checkout of Ascend's MindSpeed leave this project's numbers alone?  Small runs with it, against the CPU
platform, one line a check.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import RunError, UserError, exit_code
from tests import npu_runs

PATIENCE = 1800
"""Seconds of one launch."""
DEVICE_CLOSE = 1e-3
"""Relative difference that kernels of a device may add to those of a CPU, in float32."""

EPILOG = """
Without --device the real MindSpeed runs over this project's stand-in for torch_npu, on any machine: its device is the
CPU, its HCCL is gloo that refuses what HCCL refuses.  That shows whether start-up, patches of megatron-core,
collectives and checkpoints are right, and nothing of kernels.  With --device the torch_npu that is installed is used.

Trained are four steps of a tiny model: alone, resumed, recomputed, in bf16 and sampled from; in two processes DP2, CP2
and PP2 x VP2; in four TP2 x PP2 with sequence parallelism.  Exit status: 0 when every check is ok, 1 when one is wrong
or a launch fails, 2 for a wrong command line.

examples:
  python tools/check_mindspeed.py ~/MindSpeed                      everything, on any machine
  python tools/check_mindspeed.py ~/MindSpeed --processes 1        the quickest part
  python tools/check_mindspeed.py ~/MindSpeed --device             on a machine with NPUs
"""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=paths.path, metavar="FOLDER", help="MindSpeed, branch core_r0.16.0")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        choices=sorted(npu_runs.LAUNCHES),
        default=sorted(npu_runs.LAUNCHES),
        help="launches of so many processes (default: all)",
    )
    parser.add_argument("--device", action="store_true", help="on NPUs, over the torch_npu that is installed")
    parser.add_argument("--keep", type=paths.path, metavar="FOLDER", help="keep runs and logs there")
    return parser.parse_args(argv)


def environment(checkout: Path, device: bool) -> dict[str, str]:
    """Of processes with that MindSpeed."""
    stand_ins = [] if device else ["torch_npu"]
    # It wants to be able to import it, and uses nothing of it here.
    stand_ins += [] if importlib.util.find_spec("einops") else ["einops"]
    path = os.pathsep.join([str(checkout), npu_runs.search_path(*stand_ins)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MIND_SPEED_LOG_LEVEL": "WARNING"}


def launch(platform: str, processes: int, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """What the runs gave; RunError, with the end of their output in a file, where they failed."""
    folder.mkdir(parents=True, exist_ok=True)
    adaptor = "mindspeed" if platform == "npu" else "auto"
    command = npu_runs.command(processes, npu_runs.words(platform, adaptor, processes, folder))
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, env=env, cwd=npu_runs.REPOSITORY, stdout=output, stderr=output, timeout=PATIENCE)
    if done.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if "Error" in line and "torch.distributed.elastic" not in line]
        last = (said or lines or ["no output"])[0 if said else -1]
        raise RunError(f"{processes} processes on {platform}: {last.strip()[:300]}; all of it is in {log}")
    return npu_runs.found_in(folder)


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Print a line for each check; whether all are good."""
    if not (options.checkout / "mindspeed" / "megatron_adaptor.py").is_file():
        raise UserError(f"{options.checkout}: no mindspeed/megatron_adaptor.py there; check out branch core_r0.16.0")
    plain = {**os.environ, "PYTHONPATH": npu_runs.search_path(), "OMP_NUM_THREADS": "1"}
    plain["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    expected, close = launch("cpu", 1, folder / "cpu", plain), DEVICE_CLOSE if options.device else npu_runs.CLOSE
    env, good = environment(options.checkout, options.device), True
    for processes in options.processes:
        try:
            found = launch("npu", processes, folder / f"npu_{processes}", env)
        except RunError as error:
            print(f"WRONG  {error}", flush=True)
            good = False
            continue
        for one in npu_runs.checks(processes, found, expected, close):
            print(one.line(), flush=True)
            good = good and one.good
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = arguments(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return 0 if compare(options, options.keep or Path(scratch)) else 1
    except (UserError, OSError) as error:
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
