"""A run's checkpoint as a Hugging Face folder, in a process of its own: a run that is still there, in process groups
and on a device, cannot open its own checkpoint as one process.

    python -m megatron_videogpt.convert.exported RUN FOLDER [--weights average] [--dtype bf16]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..config import paths
from ..config.schema import Config
from ..errors import UserError, exit_code

LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Starts of variables by which a process knows that it is one of several."""
SHARD = 5 * 10**9
"""Bytes of the largest file of weights."""
WEIGHTS, DTYPES = ("trained", "average"), ("keep", "bf16", "fp32")


def export(run: Path, folder: Path, weights: str = "trained", dtype: str = "keep") -> None:
    """Write the newest checkpoint of a run as a new folder, from another process.

    Raises:
        UserError: what that process said.
    """
    command = [sys.executable, "-m", __name__, str(run), str(folder), "--weights", weights, "--dtype", dtype]
    own = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    done = subprocess.run(command, env=own, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{run}: cannot be exported: {last.removeprefix('error: ')}")


def check_exportable(config: Config, average: bool) -> None:
    """UserError, in one line, for a run whose model no folder can hold."""
    from ..objective.build import released_of
    from ..objective.released import TOKENIZER
    from .settings import CODECS
    from .table import check_network

    released = released_of(config)
    if released is None:
        check_network(Path(config.train.output), config)
    if (released is None or released.CODEC != TOKENIZER) and config.codec.name not in CODECS.values():
        known = ", ".join(CODECS.values())
        raise UserError(f"codec.name = {config.codec.name}: exported folders have a VAE, which is one of {known}")
    if average and not config.optimizer.ema_decay:
        raise UserError("weights = average needs optimizer.ema_decay above 0, for example 0.9999")


def _write(run: Path, folder: Path, average: bool, dtype: Any) -> None:
    from ..platforms import activate

    platform = activate("cpu")
    from ..checkpoint.saved import find_checkpoint
    from ..config.schema import ParallelConfig
    from ..objective.build import released_of
    from ..platforms import world
    from . import export as plain
    from . import mapped_export, write

    world.start(platform, ParallelConfig())
    try:
        released = released_of(find_checkpoint(run).config)
        if released is None:
            opened = plain.Export(run, None, average, dtype)
            write.write_folder(opened, folder, SHARD, None, None, None, lambda count: None)
        else:
            mapped = mapped_export.MappedExport(run, released, None, average, dtype)
            mapped_export.write_folder(mapped, folder, SHARD, mapped.codec(None), None, lambda count: None)
    finally:
        world.stop()


def main() -> int:
    """Entry point of the other process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=paths.path)
    parser.add_argument("folder", type=paths.path)
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0])
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    args = parser.parse_args()
    try:
        import torch

        dtype = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
        _write(args.run, args.folder, args.weights == "average", dtype)
    except (UserError, OSError) as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
