"""HCCL on a machine without NPUs: a backend `hccl` that is gloo, and refuses what HCCL refuses.

Every collective of such a group first compares its name and dtype over the ranks of the group, and waits for that:
where ranks do not call the same in the same order, this hangs where a device might have gone on.  `seen` keeps what
was called in groups of any backend.

Not to be seen here: a tensor of the host in a group of devices, buffers, timeouts, order of addition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

REDUCED = tuple(getattr(torch, name) for name in "int8 int16 int32 int64 float16 bfloat16 float32".split())
REDUCTIONS = """allreduce allreduce_coalesced reduce reduce_scatter _reduce_scatter_base reduce_scatter_single
reduce_scatter_tensor_coalesced reduce_scatter_single_coalesced""".split()
"""Methods of a process group under the names of torch 2.7 and of 2.13."""
OTHERS = """broadcast allgather _allgather_base all_gather_single allgather_coalesced allgather_into_tensor_coalesced
all_gather_single_coalesced gather scatter alltoall alltoall_base all_to_all_single""".split()
DTYPES = tuple(sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str))
BITWISE = (dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR)


class Call(NamedTuple):
    """A collective: backend and ranks of its group, method, dtypes."""

    backend: str
    ranks: tuple[int, ...]
    name: str
    dtypes: tuple[str, ...]


seen: list[Call] = []
_gather = dist.ProcessGroup.allgather


def _backend_of(group: Any) -> str:
    known = dist.distributed_c10d._world.pg_map.get(group)
    return "" if known is None else str(known[0])


def _compare(group: Any, number: int, dtypes: list[torch.dtype]) -> None:
    """RuntimeError where ranks call something else, or with other dtypes."""
    mine = torch.tensor([number, *(DTYPES.index(dtype) for dtype in dtypes[:1]), len(dtypes)], dtype=torch.int64)
    every = [torch.empty_like(mine) for _ in range(group.size())]
    _gather(group, [every], [mine]).wait()
    if any(not torch.equal(other, mine) for other in every):
        named = [f"{(REDUCTIONS + OTHERS)[int(one[0])]} of {DTYPES[int(one[1])]}" for one in every]
        raise RuntimeError(f"HCCL: the ranks of a group call different things: {', '.join(named)}")


def _checked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    reduces, number = name in REDUCTIONS, (REDUCTIONS + OTHERS).index(name)

    @functools.wraps(real)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        backend = _backend_of(self)
        dtypes = sorted({x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}, key=str)
        if backend:
            ranks = tuple(dist.get_process_group_ranks(self))
            seen.append(Call(backend, ranks, name, tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)))
        if backend != "hccl":
            return real(self, *args, **kwargs)
        for dtype in dtypes:
            if reduces and dtype not in REDUCED:
                raise RuntimeError(f"HCCL: {name}: Unsupported data type {dtype}")
        if len(dtypes) > 1:
            raise RuntimeError(f"HCCL: {name}: tensors of {' and '.join(map(str, dtypes))} in one call")
        if reduces and any(x.reduceOp == one for x in args if hasattr(x, "reduceOp") for one in BITWISE):
            raise RuntimeError(f"HCCL: {name}: Unsupported reduce operator")
        if self.size() > 1:
            _compare(self, number, dtypes)
        return real(self, *args, **kwargs)

    return call


def _create(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def register() -> None:
    """Once per process.  The device is the CPU, where the tensors are."""
    dist.Backend.register_backend("hccl", _create, devices=["cpu"])
    dist.is_hccl_available = lambda: True
    for name in (*REDUCTIONS, *OTHERS):
        if hasattr(dist.ProcessGroup, name):
            setattr(dist.ProcessGroup, name, _checked(name, getattr(dist.ProcessGroup, name)))
