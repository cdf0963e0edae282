"""Who makes megatron-core run on NPUs: MindSpeed `core_r0.16.0`, its successor `megatron_adaptor`, or what is here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from ..errors import UserError, shortened
from .surroundings import program_name_only

ADAPTORS = ("mindspeed", "megatron_adaptor", "own")
OPTION, VARIABLE = "train.adaptor", "MVG_ADAPTOR"
"""Where one is named: the variable counts where the option says `auto`, and in commands that do not have it."""
NEEDED = {"triton": "pip install triton-ascend, Ascend's build of it", "einops": "pip install einops"}
"""What MindSpeed imports beside its own requirements, and where it comes from."""
COALESCES = "2.7.1.post4"
"""The first torch_npu whose HCCL sends several tensors as one (`_coalescing_manager`), as megatron-core's gradient
buckets do; before it only MindSpeed's buckets work.
"""
MADE_FOR = {"mindspeed": "0.16.", "megatron_adaptor": "0.17."}
"""megatron-core that each is made for, by the beginning of its version."""
MINDSPEED = "check out branch core_r0.16.0 of Ascend's MindSpeed and pip install -e it"

SOURCES = {"mindspeed": MINDSPEED, "megatron_adaptor": "install it as Ascend's MindSpeed 0.17 or later describes"}


def installed(name: str) -> bool:
    """Whether a package could be imported; it is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return False


def asked(configured: str | None, environment: Mapping[str, str]) -> tuple[str, str]:
    """(what is wanted, `OPTION` or `VARIABLE`: where another can be named).

    configured: `train.adaptor`, None in a command that does not have it.
    """
    said = environment.get(VARIABLE) or "auto"
    if configured is None:
        return said, VARIABLE
    return (said, VARIABLE) if configured == "auto" and said != "auto" else (configured, OPTION)


def choose(wanted: str, versions: Mapping[str, str], where: str = OPTION) -> tuple[str, str]:
    """(a name of `ADAPTORS`, why).

    wanted: one of them, or `auto` for the first that is installed and made for this megatron-core.  versions: as
    `npu_versions.found`.  where: as `asked` has it.

    Raises:
        UserError: one line: it is not there, or cannot work with this torch_npu.
    """
    if wanted not in ("auto", *ADAPTORS):
        raise UserError(f"{where}={wanted}: expected auto or one of {', '.join(ADAPTORS)}")
    if wanted == "auto":
        wanted, why = _first(versions)
    else:
        why = "as configured" if where == OPTION else f"as {where} says"
    if wanted == "own":
        _check_own(versions, where)
    elif not installed(wanted):
        raise UserError(f"{where}={wanted}: the package {wanted} is missing; {SOURCES[wanted]}, or use {where}=own")
    if wanted == "mindspeed":
        for name, fix in NEEDED.items():
            if not installed(name):
                raise UserError(
                    f"{where}=mindspeed: MindSpeed imports the package {name}, which is missing; {fix}, or use "
                    f"{where}=own"
                )
    return wanted, why


def _first(versions: Mapping[str, str]) -> tuple[str, str]:
    core = versions.get("megatron-core", "")
    passed = []
    for name, made_for in MADE_FOR.items():
        if installed(name) and core.startswith(made_for):
            return name, f"the first that is installed and made for megatron-core {core}"
        passed.append(f"{name} is for another megatron-core" if installed(name) else f"{name} is not installed")
    return "own", "; ".join(passed)


def _check_own(versions: Mapping[str, str], where: str) -> None:
    try:
        late = Version(versions["torch_npu"]) >= Version(COALESCES)
    except InvalidVersion:
        return
    if not late:
        raise UserError(
            f"{where}=own: needs torch_npu {COALESCES} or newer, whose HCCL takes the gradient buckets of "
            f"megatron-core, and found {versions['torch_npu']}; install that, or MindSpeed: {MINDSPEED}"
        )


def load(name: str, where: str = OPTION) -> None:
    """Let an adaptor change torch and megatron-core; before anything derives from megatron-core's classes.

    It sees the program's name for a command line: it has options of names that ours have too, and turns those it does
    not know into fields of every configuration.  where: as `asked` has it.

    Raises:
        UserError: one line: something that it imports is missing.
    """
    try:
        with program_name_only():
            # MindSpeed does so itself, its successor no more.
            importlib.import_module("torch_npu.contrib.transfer_to_npu")
            if name == "own":
                complete_transfer()
            else:
                importlib.import_module("mindspeed.megatron_adaptor" if name == "mindspeed" else name)
    except ImportError as error:
        raise UserError(
            f"{where}={name}: it cannot be imported ({shortened(error)}); versions of it and of torch_npu may "
            f"not belong together, see docs/ascend.md, or use {where}=own"
        ) from error


def complete_transfer() -> None:
    """What megatron-core needs of `torch.cuda` beyond what torch_npu's `transfer_to_npu` puts there."""
    torch.Tensor.type = _named_cuda(torch.Tensor.type)  # type: ignore[method-assign]
    # Where megatron-core restores the generator of its device.  torch_npu has one a device from its first use on.
    torch.npu.init()
    torch.cuda.default_generators = torch.npu.default_generators
    torch.cuda._lazy_call, torch.cuda._lazy_init = torch.npu._lazy_call, torch.npu._lazy_init
    # In a build of torch for CPUs both raise.
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *args: None
    # What it compiles are small functions; compiling for NPUs takes Ascend's build of Triton.
    torch.compile = _as_it_is  # type: ignore[assignment]


def _named_cuda(kind: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type`: the distributed optimizer sorts parameters by this name, and knows those of CUDA."""

    @functools.wraps(kind)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = kind(self, *args, **kwargs)
        return result.replace("torch.npu.", "torch.cuda.", 1) if isinstance(result, str) else result

    return type_


def _as_it_is(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`torch.compile`, called and as a decorator, with arguments or without."""
    return function if callable(function) else _as_it_is
