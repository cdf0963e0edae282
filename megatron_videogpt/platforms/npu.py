"""Ascend NPUs over HCCL, through torch_npu and MindSpeed (which adapts megatron-core).  It does not start yet: written
without an NPU at hand.
"""

from __future__ import annotations

import importlib.util

import torch

from ..errors import UserError
from . import Platform
from .probe import Probe
from .profiling import of_npu


def activate(local_rank: int) -> Platform:
    """Take NPU `local_rank`; raises ValueError when torch_npu, MindSpeed or the device is missing."""
    for module, fix in (
        ("torch_npu", "install the npu extra on a machine with CANN"),
        ("mindspeed", "install MindSpeed core_r0.16.0 from source"),
    ):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"train.platform=npu: the package {module} is missing; {fix}")
    import torch_npu  # noqa: F401

    if local_rank >= torch.npu.device_count():
        raise UserError(
            f"train.platform=npu: LOCAL_RANK={local_rank} but this machine shows {torch.npu.device_count()} "
            "NPUs; start fewer processes"
        )
    torch.npu.set_device(local_rank)
    # MindSpeed patches megatron-core as it is imported, so it must come first.
    import mindspeed.megatron_adaptor  # noqa: F401

    return Platform(
        name="npu",
        device=torch.device("npu", local_rank),
        backend="hccl",
        device_name=torch.npu.get_device_name(local_rank),
        memory_peak=lambda: torch.npu.max_memory_allocated(),
        reset_memory_peak=torch.npu.reset_peak_memory_stats,
        memory_total=lambda: torch.npu.mem_get_info()[1],
        own_seconds=Probe(torch.device("npu", local_rank), torch.npu),
        profiling=of_npu,
    )
