"""Which backend computes attention in this process: the first in order that can run here and whose results were seen to
be right here.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch

from ..errors import UserError
from . import BACKENDS, verify

log = logging.getLogger(__name__)


class WrongHere(UserError):
    """A backend computed something wrong on this rank's device."""


ORDER = {"cuda": ("flash", "triton", "flex", "ranged"), "cpu": ("ranged",), "npu": ("npu", "npu_dense", "ranged")}
"""What `auto` tries on a kind of device, one after another; the last one runs everywhere."""

_HALF = (torch.bfloat16, torch.float16)


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def _triton_obstacle(dtype: torch.dtype, head_dim: int) -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype not in (torch.float32, *_HALF):
        return f"its kernels do not take {dtype}"
    try:
        from .triton_attention import HEAD_DIMS
    except ImportError as error:
        return f"the package triton cannot be imported ({error})"
    return (
        ""
        if head_dim in HEAD_DIMS
        else f"its kernels are written for head dimensions {', '.join(map(str, HEAD_DIMS))}, and it is {head_dim}"
    )


def _flex_obstacle(dtype: torch.dtype, head_dim: int) -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype not in (torch.float32, *_HALF):
        return f"FlexAttention does not take {dtype}"
    return "" if head_dim >= 16 else f"FlexAttention needs a head dimension of at least 16, and it is {head_dim}"


def _npu_obstacle(device_type: str, dtype: torch.dtype, head_dim: int) -> str:
    if device_type != "npu":
        return f"it runs on Ascend NPUs only, and this is {device_type}"
    if dtype not in (torch.float32, *_HALF):
        return f"torch_npu's operators do not take {dtype}"
    return (
        "" if head_dim <= 768 else f"torch_npu's operators take a head dimension of at most 768, and it is {head_dim}"
    )


def obstacle(
    backend: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None = None,
    deterministic: bool = False,
) -> str:
    """Why a backend cannot train on this kind of device, or an empty string.

    device_type: as in `torch.device.type`.  capability: CUDA compute capability, None for this machine's.
    deterministic: as in `attention.attend`.
    """
    if backend in ("reference", "ranged"):
        return ""
    if backend in ("npu", "npu_dense"):
        return _npu_obstacle(device_type, dtype, head_dim)
    if device_type != "cuda":
        return (
            f"it has no backward on {device_type}"
            if backend == "flex"
            else f"it runs on CUDA only, and this is {device_type}"
        )
    if backend == "flex":
        return _flex_obstacle(dtype, head_dim)
    if backend == "triton":
        return _triton_obstacle(dtype, head_dim)
    from .flash import obstacle as flash_obstacle

    return flash_obstacle(capability or _capability(), dtype, head_dim, deterministic)


def candidates(
    backend: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None = None,
    deterministic: bool = False,
) -> list[tuple[str, str]]:
    """Backends to try in order, each with the reason in words; the last always runs.

    backend: a name of `BACKENDS`, which comes first then, or `auto`.  Raises ValueError for an unknown name, and for a
    named backend that cannot train here.
    """
    if backend not in (*BACKENDS, "auto"):
        raise UserError(f"attention.backend is {backend!r}, but it must be one of {', '.join(('auto', *BACKENDS))}")
    order = ORDER[device_type]
    missing = {
        name: obstacle(name, device_type, dtype, head_dim, capability, deterministic)
        for name in {*order, backend} - {"auto"}
    }
    if missing.get(backend):
        raise UserError(
            f"attention.backend is {backend!r}, but {missing[backend]}: use attention.backend=auto or ranged"
        )
    passed = "; ".join(f"not {name}: {missing[name]}" for name in order if missing[name])
    first = f"the first that can run on {device_type}" + (f"; {passed}" if passed else "")
    listed = [(name, first) for name in order if not missing[name] and name != backend]
    return listed if backend == "auto" else [(backend, "as configured"), *listed]


def select(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """The first of `candidates`: what would run, and why, before anything was compiled."""
    return candidates(backend, device_type, dtype, head_dim)[0]


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    queries_per_key: int = 1,
    deterministic: bool = False,
    worst: Callable[[int], int] = lambda outcome: outcome,
) -> tuple[str, str]:
    """The backend that will run, after it was compared with `reference` here, and why.

    queries_per_key: query heads of one key-value head.  worst: the largest outcome of all ranks, a collective, so that
    all of them take the same backend. A backend that fails to import, compile or start on any rank is passed over with
    a warning.  One that gives other numbers than `reference` on any rank raises WrongHere there and ValueError
    elsewhere: nobody should train on a device or with a compiler that does that.
    """
    listed = candidates(backend, device.type, dtype, head_dim, deterministic=deterministic)
    for number, (name, reason) in enumerate(listed):
        outcome, message = _try(name, device, dtype, head_dim, queries_per_key, deterministic)
        agreed = worst(outcome)
        if agreed == _WRONG:
            if outcome == _WRONG:
                raise WrongHere(message)
            raise UserError(
                f"attention backend {name} differs from reference on the device of another rank, which says by how much"
            )
        if agreed == _RIGHT:
            return name, reason
        following = f"; trying {listed[number + 1][0]}" if number + 1 < len(listed) else ""
        log.warning(
            "attention backend %s does not work here: %s%s",
            name,
            message or "another rank could not start it",
            following,
        )
        listed[number + 1 :] = [(later, f"{name} did not work") for later, _ in listed[number + 1 :]]
    raise UserError(
        f"no attention backend works on {device}: tried {', '.join(name for name, _ in listed)}; the warnings "
        "above say why"
    )


_RIGHT, _BROKEN, _WRONG = 0, 1, 2


def _try(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, queries_per_key: int, deterministic: bool
) -> tuple[int, str]:
    """(outcome, what went wrong in one line)."""
    try:
        problem = verify.problem(name, device, dtype, head_dim, queries_per_key, deterministic)
    # Compilers and kernel packages raise whatever they like; the caller goes on with another backend and says so.
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines()
        return _BROKEN, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return (_WRONG, problem) if problem else (_RIGHT, "")
