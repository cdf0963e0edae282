"""Process groups: torchrun's environment, or a single process without any."""

from __future__ import annotations

import datetime
import gc
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from megatron.core import parallel_state, tensor_parallel

from ..config.schema import ParallelConfig
from ..errors import RunError
from ..platforms import Platform

T = TypeVar("T")


def world_size() -> int:
    """Processes of this launch (1 without torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(platform: Platform, parallel: ParallelConfig, timeout_minutes: float = 30.0) -> None:
    """Join the process group and build the model parallel groups; a no-op when they exist already.

    Raises RunError when the world does not fit the layout, before any process waits for another.
    """
    if parallel_state.is_initialized():
        return
    size, model_size = world_size(), parallel.model_size
    if size % model_size:
        raise RunError(
            f"{size} processes cannot be split into groups of {model_size} (parallel.tensor={parallel.tensor} x parallel.context={parallel.context} x "
            f"parallel.pipeline={parallel.pipeline}); "
            f"launch a multiple of {model_size} with torchrun --nproc_per_node, or lower the sizes"
        )
    minutes = patience(timeout_minutes)
    timeout = datetime.timedelta(minutes=minutes)
    if not torch.distributed.is_initialized():
        if "RANK" in os.environ:
            store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timeout))
            # torch 2.13's launcher keeps its store over a restart, with the addresses of the processes that are gone.
            store = torch.distributed.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            torch.distributed.init_process_group(platform.backend, store=store, rank=rank, world_size=size, timeout=timeout)
        else:
            torch.distributed.init_process_group(platform.backend, store=torch.distributed.HashStore(), rank=0, world_size=1, timeout=timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=minutes,
    )
    # megatron-core forks this generator under sequence parallelism; nothing here draws from it.
    tensor_parallel.model_parallel_cuda_manual_seed(0)


def patience(timeout_minutes: float) -> int:
    """Minutes that a collective waits: longer than a phase may last, so that the watchdog of the rank that hangs speaks before those that wait for it."""
    return math.ceil(timeout_minutes) + 1


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

    megatron-core drops its process groups without ending them, and each keeps threads that poll its sockets: after forty layouts more than a thousand.
    """
    parallel_state.destroy_model_parallel()
    for group in [group for group in torch.distributed.distributed_c10d._world.pg_map if group is not torch.distributed.group.WORLD]:
        torch.distributed.destroy_process_group(group)
    # Models are reference cycles that hold the groups of layouts before.
    gc.collect()


def is_rank_zero() -> bool:
    """Whether this process speaks for the run."""
    return int(os.environ.get("RANK", "0")) == 0


def gather(value: T, group: Any = None) -> list[T]:
    """`value` of every rank, by rank; a collective of `group` (of all ranks; the default one by default)."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def first_error(error: str, group: Any = None) -> str:
    """The first rank's error message that is not empty, the same on every rank; a collective."""
    return next((text for text in gather(error, group) if text), "")


def raise_together(error: str, group: Any = None) -> None:
    """Raise RunError on every rank if some rank has an `error`, naming the ranks unless all have the same; a collective."""
    errors = gather(error, group)
    found = {text: [rank for rank, other in enumerate(errors) if other == text] for text in dict.fromkeys(errors) if text}
    named = [text if len(ranks) == len(errors) else f"{name_ranks(ranks)} of {len(errors)}: {text}" for text, ranks in found.items()]
    if named:
        raise RunError("; ".join(named))


def name_ranks(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0, 4-7` for a sorted list."""
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    runs = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(runs)}"


def from_rank_zero(decide: Callable[[], T], group: Any = None) -> T:
    """What `decide` returns on rank 0, on every rank; a collective.  Ranks that look for themselves may see a shared file system in different states.

    What it raises ends all ranks: rank 0 raises it, and the others a RunError, which stays silent there.
    """
    answer: list[Any] = [None, ""]
    failure: Exception | None = None
    if is_rank_zero():
        try:
            answer[0] = decide()
        except Exception as error:  # noqa: BLE001  (raised again below, when the others know)
            failure, answer[1] = error, " ".join(str(error).split()) or type(error).__name__
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(answer, 0, group=group)
    if failure is not None:
        raise failure
    if answer[1]:
        raise RunError(answer[1])
    return answer[0]
