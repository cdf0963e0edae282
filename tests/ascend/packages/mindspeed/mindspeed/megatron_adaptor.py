"""What the module of this name in MindSpeed `core_r0.16.0` does as it is imported."""

from torch_npu.contrib import transfer_to_npu  # noqa: F401

from tests.ascend import hostile

hostile.adapt("mindspeed.megatron_adaptor")
