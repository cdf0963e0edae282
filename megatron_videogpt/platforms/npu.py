"""Ascend NPUs over HCCL, through torch_npu and what adapts megatron-core to it (`npu_adaptor`).

In this order: torch_npu, the device of this process, its options, the adaptor, then what these have changed around them
(`surroundings`), then megatron-core.  Shown over stand-ins on a CPU; nobody has run it on a device yet.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UserError, shortened
from . import Platform, npu_adaptor, npu_versions
from .probe import Probe
from .profiling import of_npu
from .surroundings import kept_surroundings

log = logging.getLogger(__name__)

SOURCE = (
    "source /usr/local/Ascend/cann/set_env.sh (before CANN 9: /usr/local/Ascend/ascend-toolkit/set_env.sh) in the "
    "shell that starts it"
)
CANN_LIBRARIES = ("libhccl.so", "libascendcl.so", "libascend_hal.so")
INSTALL = (
    'pip install "torch==2.7.1" "torch_npu==2.7.1.post4" beside CANN 9.0.0, and on x86_64 with '
    "--extra-index-url https://download.pytorch.org/whl/cpu"
)
SATURATION = "INF_NAN_MODE_ENABLE"


def import_torch_npu() -> Any:
    """torch_npu.

    Raises:
        UserError: one line: it, CANN, or a torch that it runs beside is missing.
    """
    if torch.version.cuda is not None:
        raise UserError(
            f"train.platform=npu: torch {torch.__version__} is a CUDA build, beside which torch_npu cannot be "
            f"imported; install the CPU build of the same version: {INSTALL}"
        )
    if importlib.util.find_spec("torch_npu") is None:
        raise UserError(f"train.platform=npu: the package torch_npu is missing; {INSTALL}")
    try:
        return importlib.import_module("torch_npu")
    except ImportError as error:
        problem = shortened(error)
        fix = SOURCE if any(name in problem for name in CANN_LIBRARIES) else INSTALL
        raise UserError(f"train.platform=npu: torch_npu cannot be imported ({problem}); {fix}") from error


def check_saturation(environment: Mapping[str, str], keeps_inf: bool = True) -> None:
    """UserError where overflow would saturate and not-a-number become 0: no gradient would look wrong any more.

    keeps_inf: what the device says of itself.
    """
    if environment.get(SATURATION, "1") == "0":
        raise UserError(
            f"{SATURATION}=0: overflow would saturate and not-a-number become 0 on the NPU, and a step with broken "
            f"gradients would not be noticed; unset {SATURATION}, or set it to 1"
        )
    if not keeps_inf:
        raise UserError(
            "train.platform=npu: this NPU saturates overflow and turns not-a-number into 0 (the training series before "
            "A2), so that a step with broken gradients would not be noticed; train on A2 or later"
        )


def keeps_inf(torch_npu: Any) -> bool | None:
    """Whether the device keeps infinity and not-a-number; None where this torch_npu does not say."""
    ask = getattr(torch_npu.npu.utils, "is_support_inf_nan", None)
    return None if ask is None else bool(ask())


def device_index(environment: Mapping[str, str], count: int) -> int:
    """The NPU of this process among the `count` that it may see, which are numbered from 0 on every node.

    environment: as the launcher left it; only LOCAL_RANK counts.

    Raises:
        UserError: one line: there is no such device.
    """
    visible = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    named = "" if visible is None else f" (ASCEND_RT_VISIBLE_DEVICES={visible})"
    if count == 0:
        raise UserError(
            f"train.platform=npu: this machine shows no NPU{named}; npu-smi info says whether the driver sees one, and "
            "a container needs its /dev/davinci devices"
        )
    text = environment.get("LOCAL_RANK")
    if text is None and int(environment.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"train.platform=npu: WORLD_SIZE={environment['WORLD_SIZE']} but LOCAL_RANK is not set, so that every "
            "process would take NPU 0; start with torchrun, which sets it"
        )
    text = "0" if text is None else text
    if not text.strip().isdecimal() or int(text) >= count:
        raise UserError(
            f"train.platform=npu: LOCAL_RANK={text} but this machine shows {count} NPUs{named}, 0 to {count - 1}; "
            "start at most so many processes on a node"
        )
    return int(text)


def set_options() -> None:
    """Options of the device, which have other defaults on other series; after `set_device`."""
    # Rows of every length are another shape.
    torch.npu.set_compile_mode(jit_compile=False)
    # Buffers are cut into views, which HCCL refuses in internal formats.
    torch.npu.config.allow_internal_format = False
    # As torch has TF32 on GPUs: convolutions only, which the codec has.
    torch.npu.matmul.allow_hf32 = False
    torch.npu.conv.allow_hf32 = True


def activate(environment: Mapping[str, str], adaptor: str | None = None) -> Platform:
    """Take this process's NPU and adapt megatron-core; see `npu_adaptor.asked` for `adaptor`.

    Raises:
        UserError: one line: what is missing or set wrong, and what to do.
    """
    check_saturation(environment)
    with kept_surroundings() as warned:
        torch_npu = import_torch_npu()
        index = device_index(environment, torch.npu.device_count())
        torch.npu.set_device(index)
        keeps = keeps_inf(torch_npu)
        check_saturation(environment, keeps is not False)
        set_options()
        # Before the adaptor, which makes versions of packages up.
        found = npu_versions.found(torch_npu)
        wanted, where = npu_adaptor.asked(adaptor, environment)
        name, why = npu_adaptor.choose(wanted, found, where)
        npu_adaptor.load(name, where)
    log.info("NPU %d of %d: %s; adaptor %s (%s)", index, torch.npu.device_count(), _name(index), name, why)
    log.info("versions: %s", ", ".join(f"{package} {version}" for package, version in found.items()))
    if keeps is None:
        log.warning(
            "torch_npu %s has no is_support_inf_nan: whether this NPU saturates overflow could not be checked; A2 and "
            "later do not, unless %s=0",
            found["torch_npu"],
            SATURATION,
        )
    for line in warned:
        log.info("while that was imported: %s", line)
    for line in npu_versions.misfits(found, name):
        log.warning("%s", line)
    return Platform(
        name="npu",
        device=torch.device("npu", index),
        backend="hccl",
        device_name=_name(index),
        memory_peak=lambda: torch.npu.max_memory_allocated(),
        reset_memory_peak=torch.npu.reset_peak_memory_stats,
        memory_total=lambda: torch.npu.mem_get_info()[1],
        own_seconds=Probe(torch.device("npu", index), torch.npu),
        profiling=of_npu,
    )


def _name(index: int) -> str:
    return str(torch.npu.get_device_name(index))
