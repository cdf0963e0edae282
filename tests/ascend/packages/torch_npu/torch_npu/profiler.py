"""torch's own profiler under the names of torch_npu's."""

import torch
from torch.profiler import profile as profile
from torch.profiler import schedule as schedule


class ProfilerActivity:
    """What there is to trace."""

    CPU = NPU = torch.profiler.ProfilerActivity.CPU
