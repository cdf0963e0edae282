"""NVIDIA GPUs over NCCL."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import UserError
from . import Platform
from .probe import Probe
from .profiling import of_cuda


def activate(environment: Mapping[str, str]) -> Platform:
    """Take the GPU of the launcher's LOCAL_RANK; raises ValueError when there is none."""
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"train.platform=cuda: LOCAL_RANK={local_rank} but this machine shows {count} GPUs; start fewer "
            "processes or use train.platform=cpu"
        )
    torch.cuda.set_device(local_rank)
    return Platform(
        name="cuda",
        device=torch.device("cuda", local_rank),
        backend="nccl",
        device_name=torch.cuda.get_device_name(local_rank),
        memory_peak=lambda: torch.cuda.max_memory_allocated(),
        reset_memory_peak=torch.cuda.reset_peak_memory_stats,
        memory_total=lambda: torch.cuda.mem_get_info()[1],
        own_seconds=Probe(torch.device("cuda", local_rank), torch.cuda),
        # Ampere's tensor cores were the first.
        bf16=torch.cuda.get_device_capability(local_rank)[0] >= 8,
        profiling=of_cuda,
    )
