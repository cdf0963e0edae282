"""Samples to every rank that works on them (TP x CP x PP): one rank reads, the others receive; see `sharing`."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state

from ..data.plans import Sample
from ..errors import PeerFailed, one_line
from ..platforms import world
from ..platforms.together import Failure, gather_outcomes
from ..sequence.row import Row


def is_reader() -> bool:
    """Whether this rank reads data for the ranks that share its samples: the first one of all but the data parallel
    axis.
    """
    context = parallel_state.get_context_parallel_rank()
    return _is_first() and context == 0


def _is_first() -> bool:
    return torch.distributed.get_rank() == ranks_of(parallel_state.get_model_parallel_group())[0]


def ranks_of(group: Any) -> list[int]:
    """Of a group, their numbers in the world."""
    return torch.distributed.get_process_group_ranks(group)


def _device_groups() -> list[Any]:
    """The way of the samples: over context parallel ranks first, then from each of these to its tensor and pipeline
    parallel ranks.
    """
    first, second = parallel_state.get_context_parallel_group(), parallel_state.get_model_parallel_group()
    return [group for group, here in ((first, _is_first()), (second, True)) if here]


def host_group(timeout_minutes: float) -> Any:
    """A group of the ranks that share samples, for tensors on the CPU: no device holds up the reading of the next step,
    nor is held up by it.  A collective.
    """
    replicas: list[int] = [0] * torch.distributed.get_world_size()
    mine = parallel_state.get_data_parallel_rank()
    torch.distributed.all_gather_object(replicas, mine)
    timeout = datetime.timedelta(minutes=world.patience(timeout_minutes))
    # Every rank takes part in making every group: where only members do, the ranks must have made the same number of
    # groups before.
    groups = [
        torch.distributed.new_group(
            [rank for rank, replica in enumerate(replicas) if replica == number], timeout=timeout, backend="gloo"
        )
        for number in range(parallel_state.get_data_parallel_world_size())
    ]
    return groups[mine]


def side_stream(device: torch.device) -> Callable[[], Any]:
    """Contexts in which work on `device` does not queue behind a training step, so that a codec's latents
    come at once.
    """
    if device.type == "cpu":
        return contextlib.nullcontext
    module = torch.get_device_module(device)
    stream = module.Stream(device)
    return lambda: module.stream(stream)


def broadcast_samples(
    read: Callable[[], tuple[list[Sample], Any]] | None, device: torch.device, groups: list[Any] | None = None
) -> tuple[list[Sample], Any]:
    """`read()` on the reading rank: its samples (without pixels, on the CPU) and what it says of them on all ranks that
    share them.

    What the reader raises it raises here, and the other ranks of its replica PeerFailed; other replicas know nothing of
    it (see `together`).  Latents and text features travel as one float32 tensor on `device`, first through the first of
    `groups` (megatron-core's by default); all else beside it.
    """
    samples: list[Sample] = []
    header: list[Any] = [None]
    failed: BaseException | None = None
    if is_reader():
        assert read is not None
        try:
            samples, note = read()
            header = [([_apart(sample) for sample in samples], note)]
        except BaseException as error:  # noqa: BLE001  (raised when the others know)
            failed, header = error, [Failure(torch.distributed.get_rank(), False, one_line(error))]
    groups = [group for group in (_device_groups() if groups is None else groups) if group.size() > 1]
    for group in groups:
        torch.distributed.broadcast_object_list(header, ranks_of(group)[0], group=group)
    if failed is not None:
        raise failed
    if isinstance(header[0], Failure):
        raise PeerFailed(header[0].rank, f"rank {header[0].rank} failed: {header[0].text}")
    entries, note = header[0]
    if is_reader() and not groups:
        moved = [{name: getattr(s, name).cpu() for name in shapes} for s, (_, shapes) in zip(samples, entries)]
        return [replace(bare, **tensors) for (bare, _), tensors in zip(entries, moved)], note

    sizes = [shape.numel() for _, shapes in entries for shape in shapes.values()]
    if not sum(sizes):
        flat = torch.empty(0)
    elif is_reader():
        parts = [getattr(s, name).flatten() for s, (_, shapes) in zip(samples, entries) for name in shapes]
        flat = torch.cat(parts).float().to(device)
    else:
        flat = torch.empty(sum(sizes), device=device)
    for group in groups if len(flat) else ():
        torch.distributed.broadcast(flat, ranks_of(group)[0], group=group)
    rest = iter(flat.cpu().split(sizes))
    return [
        replace(bare, **{name: next(rest).view(shape) for name, shape in shapes.items()}) for bare, shapes in entries
    ], note


def _apart(sample: Sample) -> tuple[Sample, dict[str, torch.Size]]:
    """A sample without pixels and floating-point tensors, and the shapes of the latter by name."""
    tensors = {name: getattr(sample, name) for name in ("mean", "logvar", "condition")}
    large = {name: value.shape for name, value in tensors.items() if value is not None and value.is_floating_point()}
    nothing: dict[str, Any] = dict.fromkeys(large)
    return replace(sample, pixels=None, caption="", **nothing), large


@dataclass(frozen=True)
class StepData:
    """This rank's part of a global batch: the samples that count, its rows on the CPU, and how many of its samples were
    rejected, by kind.

    encode_time: seconds that encoding them took this rank, the sending included where ranks share it.
    read_on_all_ranks: whether every rank has read its part; waits for the slowest.  Where one could not,
    `raise_failure` raises on all of them, a collective (see `together.gather_results`).
    """

    samples: list[Sample]
    rows: list[Row]
    rejected: dict[str, int]
    encode_time: float = 0.0
    read_on_all_ranks: Callable[[], bool] = lambda: True
    raise_failure: Callable[[], Any] = lambda: None


def read_with_status(read: Callable[[], StepData], group: Any, control: Any, doing: str) -> StepData:
    """`read()`, and to all ranks whether that went well, in the background.

    group: of all ranks on CPU tensors, in which nothing else happens; control: another one, for the thread that uses
    the data.
    """
    data = StepData([], [], {})
    failed: BaseException | None = None
    try:
        data = read()
    except BaseException as error:  # noqa: BLE001  (raised where the data are used, on all ranks)
        failed = error
    anyone = torch.tensor(int(failed is not None))
    work = torch.distributed.all_reduce(anyone, op=torch.distributed.ReduceOp.MAX, group=group, async_op=True)

    def read_on_all_ranks() -> bool:
        work.wait()
        return not anyone.item()

    return replace(
        data, read_on_all_ranks=read_on_all_ranks, raise_failure=lambda: gather_outcomes(None, failed, control, doing)
    )
