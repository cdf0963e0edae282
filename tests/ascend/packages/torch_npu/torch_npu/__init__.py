"""A stand-in for torch_npu on a machine without NPUs, whose device "npu" is the CPU in other clothes.

`torch.device("npu", 3)` exists, and whatever makes or moves tensors takes it and gives CPU tensors; operators come from
the emulator beside it, under the schemas of a wheel; `hccl` is gloo that refuses what HCCL refuses.  What its import
does to a process is what the wheel's does: autoload, the variable of that name, TORCH_TRANSFER_TO_NPU, ImportError
without CANN, RuntimeError beside a CUDA build.

Not to be seen here: a tensor that lies on the wrong side (all say they are on the CPU, and their type that they are on
an NPU), a CPU tensor handed to HCCL, order between streams, waiting, memory, speed and numbers of kernels, and what
forked processes may not do.

What a machine has is said by the environment: STAND_IN_TORCH_NPU (version), STAND_IN_CANN (version, "" where it is not
sourced), STAND_IN_NPUS (devices), STAND_IN_SERIES (Ascend910B, or Ascend910A for the older training series).
"""

import os

_before = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402

if torch.version.cuda is not None:
    raise RuntimeError("Two accelerators cannot be used at the same time in PyTorch: npu and cuda.")
if os.environ.get("STAND_IN_CANN", "9.0.0") == "":
    raise ImportError(
        "libhccl.so: cannot open shared object file: No such file or directory. Please check that the cann package is "
        "installed. Please run 'source set_env.sh' in the CANN installation path."
    )

from tests.ascend import operators  # noqa: E402

from . import dressed, events, hccl, npu  # noqa: E402
from . import profiler as profiler  # noqa: E402
from . import utils as utils  # noqa: E402

__version__ = os.environ.get("STAND_IN_TORCH_NPU", "2.7.1.post4")

events.note("torch_npu")
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
dressed.dress()
hccl.register()
_operators = operators.define(__version__ if __version__ in operators.VERSIONS else operators.VERSIONS[1])

if os.environ.get("TORCH_TRANSFER_TO_NPU", "0") == "1":
    from .contrib import transfer_to_npu  # noqa: F401


def _autoload() -> None:
    """Called by `import torch`; child processes autoload too, unlike after an import by name."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _before
