"""Process groups: torchrun's environment, or a single process without any."""

from __future__ import annotations

import datetime
import gc
import math
import os
from typing import Any, Protocol

import torch
from megatron.core import parallel_state, tensor_parallel

from .. import launch, signals
from ..errors import RunError
from . import Platform, hccl


class Layout(Protocol):
    """Sizes of the parallel axes: `config.schema.ParallelConfig`."""

    @property
    def tensor(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def pipeline(self) -> int: ...
    @property
    def virtual_pipeline(self) -> int: ...
    @property
    def model_size(self) -> int:
        """Processes of one replica of the model."""
        ...


def world_size() -> int:
    """Processes of this launch (1 without torchrun)."""
    return launch.world_size()


def start(platform: Platform, parallel: Layout, timeout_minutes: float = 30.0) -> None:
    """Join the process group and build the model parallel groups; a no-op when they exist already.

    Raises RunError when the world does not fit the layout, before any process waits for another.
    """
    if parallel_state.is_initialized():
        return
    size, model_size = world_size(), parallel.model_size
    if size % model_size:
        raise RunError(
            f"{size} processes cannot be split into groups of {model_size} (parallel.tensor={parallel.tensor} "
            f"x parallel.context={parallel.context} x "
            f"parallel.pipeline={parallel.pipeline}); "
            f"launch a multiple of {model_size} with torchrun --nproc_per_node, or lower the sizes"
        )
    minutes = _limit(platform, timeout_minutes)
    timeout = datetime.timedelta(minutes=minutes)
    if not torch.distributed.is_initialized():
        if "RANK" in os.environ:
            with signals.joining():
                _join(platform.backend, timeout)
        else:
            torch.distributed.init_process_group(
                platform.backend, store=torch.distributed.HashStore(), rank=0, world_size=1, timeout=timeout
            )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=minutes,
    )
    # megatron-core forks this generator under sequence parallelism; nothing here draws from it.
    tensor_parallel.model_parallel_cuda_manual_seed(0)


def _join(backend: str, timeout: datetime.timedelta) -> None:
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    # torch 2.13's launcher keeps its store over a restart, with the addresses of the processes that are gone.
    store = torch.distributed.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def patience(timeout_minutes: float) -> int:
    """Minutes that a collective waits: longer than a phase may last, so that the watchdog of the rank that hangs speaks
    before those that wait for it.
    """
    return math.ceil(timeout_minutes) + 1


def _limit(platform: Platform, timeout_minutes: float) -> int:
    """Minutes that the process groups of the platform's own backend wait."""
    minutes = patience(timeout_minutes)
    if platform.backend != "hccl":
        return minutes
    return max(minutes, math.floor(hccl.fit_timeouts(timeout_minutes) / 60) + 1)


def control_group(timeout_minutes: float = 30.0) -> Any:
    """A group of all ranks for small messages on CPU tensors, so that no device waits for them; a collective."""
    return torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(minutes=patience(timeout_minutes)))


def stop() -> None:
    """Leave the process groups."""
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_layout() -> None:
    """Forget the model parallel groups, so that the same processes can take another layout.

    megatron-core drops its process groups without ending them, and each keeps threads that poll its sockets: after
    forty layouts more than a thousand.
    """
    # A rank that closes its sockets while another still reads from them resets the connection.
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    for group in [
        group
        for group in torch.distributed.distributed_c10d._world.pg_map
        if group is not torch.distributed.group.WORLD
    ]:
        torch.distributed.destroy_process_group(group)
    # Models are reference cycles that hold the groups of layouts before.
    gc.collect()


def is_rank_zero() -> bool:
    """Whether this process speaks for the run."""
    return int(os.environ.get("RANK", "0")) == 0
