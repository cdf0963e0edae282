"""The one place that knows devices by name.

`activate` is called once per process, before megatron-core is imported; everything else asks the `Platform` it returns.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import UserError, shortened
from .profiling import Profiling, of_cpu
from .surroundings import kept_surroundings

log = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "npu")


@dataclass(frozen=True)
class Platform:
    """What a device kind needs.

    backend: torch.distributed backend name; device: this process's device; device_name: for the log and the peak table;
    memory_peak: bytes allocated at most so far on the device (resident set on a CPU); reset_memory_peak: forget it (not
    on a CPU); memory_total: bytes that this process may fill; own_seconds: a clock that stands still while this rank
    waits for others, to find slow ones; bf16: it has instructions for products of bf16 matrices; profiling: how its
    work is traced.
    """

    name: str
    device: torch.device
    backend: str
    device_name: str
    memory_peak: Callable[[], int]
    reset_memory_peak: Callable[[], None]
    memory_total: Callable[[], int]
    own_seconds: Callable[[], float]
    bf16: bool = True
    profiling: Callable[[], Profiling] = of_cpu


_active: Platform | None = None


def detect() -> str:
    """The platform of this machine: npu where torch_npu sees a device, else cuda, else cpu."""
    if importlib.util.find_spec("torch_npu") is not None:
        try:
            with kept_surroundings():
                import torch_npu  # noqa: F401  (adds torch.npu)
        # Without CANN, or beside a CUDA build of torch.
        except (ImportError, RuntimeError) as error:
            log.warning("torch_npu is installed and cannot be imported, going on without NPUs: %s", shortened(error))
        else:
            if torch.npu.is_available():
                return "npu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def activate(name: str = "auto", adaptor: str | None = None) -> Platform:
    """Choose the platform of this process; a second call must name the same one.

    adaptor: `train.adaptor`, which only NPUs have, None in a command without it; the first call's counts.

    Raises ValueError for an unknown or unavailable platform, or when megatron-core was imported first.
    """
    global _active
    if name != "auto" and name not in PLATFORMS:
        raise UserError(f"train.platform={name}: expected auto or one of {', '.join(PLATFORMS)}")
    wanted = (_active.name if _active else detect()) if name == "auto" else name
    if _active is not None:
        if _active.name != wanted:
            raise ValueError(
                f"train.platform={wanted}: this process already runs on {_active.name}; start a new process"
            )
        return _active
    if "megatron.core" in sys.modules:
        raise ValueError(
            "megatron-core was imported before a platform was chosen: call megatron_videogpt.platforms.activate() first"
        )
    # megatron-core and torch.distributed warn at every start and step about each other's deprecated names; nothing a
    # user could change.
    warnings.filterwarnings("ignore", module=r"megatron\.core|torch\.(distributed|optim|utils|autograd)|contextlib")
    options = {"adaptor": adaptor} if wanted == "npu" else {}
    _active = importlib.import_module(f"{__name__}.{wanted}").activate(os.environ, **options)
    return _active
