"""A run's checkpoint as a Hugging Face folder, in a process of its own: a run that is still there, in process groups
and on a device, cannot open its own checkpoint as one process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..config.schema import Config
from ..errors import UserError
from ..launch import package_environment

LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Starts of variables by which a process knows that it is one of several."""
WEIGHTS, DTYPES = ("trained", "average"), ("keep", "bf16", "fp32")


def export(run: Path, folder: Path, weights: str = "trained", dtype: str = "keep") -> None:
    """Write the newest checkpoint of a run as a new folder, from another process.

    Raises:
        UserError: what that process said.
    """
    command = [sys.executable, "-m", "megatron_videogpt", "convert", "to-hf", str(run), "--output", str(folder)]
    own = {name: value for name, value in package_environment().items() if not name.startswith(LAUNCHER)}
    done = subprocess.run(
        [*command, "--weights", weights, "--dtype", dtype],
        env=own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
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
