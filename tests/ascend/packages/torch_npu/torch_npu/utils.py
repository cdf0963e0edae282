"""As much of `torch_npu.utils` as is public and used."""

from .npu import get_cann_version as get_cann_version
