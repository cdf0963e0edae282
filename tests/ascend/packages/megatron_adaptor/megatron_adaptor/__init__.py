"""A stand-in for the package `megatron_adaptor`, which adapts megatron-core as it is imported, and leaves
`transfer_to_npu` to whoever imports it.
"""

import torch
import torch_npu

from tests.ascend import hostile

if torch.cuda.current_device is not torch_npu.npu.current_device:
    raise ImportError("megatron_adaptor was imported before transfer_to_npu")
hostile.adapt("megatron_adaptor")
