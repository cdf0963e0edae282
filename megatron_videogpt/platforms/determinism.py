"""What the same bits in every run need of a platform, beside an order in which kernels of our own add up."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import UserError

NPU_ENVIRONMENT = {"HCCL_DETERMINISTIC": "true", "CLOSE_MATMUL_K_SHIFT": "1"}
"""Variables that HCCL and CANN's matrix products read as they start, and the values that fix their order."""


def make_deterministic(platform: str, environment: Mapping[str, str]) -> None:
    """Have an NPU add up in a fixed order, in operators and between devices; nothing elsewhere.

    Raises:
        UserError: one line: the environment, which is read before this, asks for another order.
    """
    if platform != "npu":
        return
    wrong = {name: value for name, value in NPU_ENVIRONMENT.items() if environment.get(name, "").lower() != value}
    if wrong:
        found = ", ".join(f"{name} is {environment.get(name) or 'not set'}" for name in wrong)
        fix = " ".join(f"{name}={value}" for name, value in wrong.items())
        raise UserError(
            f"attention.deterministic = true: {found}; export {fix} before the start, or use "
            "attention.deterministic=false"
        )
    torch.use_deterministic_algorithms(True)
    # Its other half, which fills memory that nobody reads.
    torch.utils.deterministic.fill_uninitialized_memory = False
