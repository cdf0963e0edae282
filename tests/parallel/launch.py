"""Starting real torchrun processes from a test."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def python_path() -> str:
    """This copy of the package for other processes, behind what this one was told to look into first: another megatron-core (tests/newest_megatron.sh)."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY)]))


def release() -> str:
    """The release of megatron-core that is to be tested: the installed one, or the one that tests/newest_megatron.sh puts before it."""
    return os.environ.get("MVG_MEGATRON") or metadata.version("megatron-core")


def torchrun(processes: int, *arguments: str, timeout: float = 300, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node=<processes> <arguments>` over gloo on this machine; fails the test with the output when it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *arguments]
    result = run(command, timeout, **environment)
    if check:
        assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result


def run(command: list[str], timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the repository with one thread per process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def cli(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m megatron_videogpt <arguments>`."""
    return run([sys.executable, "-m", "megatron_videogpt", *arguments], timeout, **environment)
