"""What a machine is: processor, GPU and versions of libraries, for gpu_check.py."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def versions() -> None:
    """Print what runs here."""
    from importlib import metadata

    import torch

    packages = (
        "torch",
        "triton",
        "megatron-core",
        "flash-attn-4",
        "nvidia-cutlass-dsl",
        "quack-kernels",
        "transformer-engine",
        "numpy",
    )
    print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; Python {platform.python_version()}")
    for name in packages:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    if torch.cuda.is_available():
        print(
            f"{torch.cuda.get_device_name()}, capability {torch.cuda.get_device_capability()}, "
            f"{torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"
        )
        query = "driver_version,clocks.max.sm,power.limit,clocks_throttle_reasons.active"
        print(
            subprocess.run(
                ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
                capture_output=True,
                encoding="utf-8",
                check=False,
            ).stdout.strip()
        )
    commit = subprocess.run(
        ["git", "log", "--oneline", "-1"], capture_output=True, encoding="utf-8", check=False, cwd=REPOSITORY
    ).stdout.strip()
    print(f"commit {commit or 'unknown'}")
