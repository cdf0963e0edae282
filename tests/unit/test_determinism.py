"""What `attention.deterministic` asks of an NPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_videogpt.errors import UserError
from megatron_videogpt.platforms.determinism import NPU_ENVIRONMENT, make_deterministic


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_an_npu_is_told() -> None:
    make_deterministic("npu", {"HCCL_DETERMINISTIC": "TRUE", "CLOSE_MATMUL_K_SHIFT": "1"})
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_others_are_left_alone(platform: str) -> None:
    make_deterministic(platform, {})
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"HCCL_DETERMINISTIC": ""}, "HCCL_DETERMINISTIC is not set; export HCCL_DETERMINISTIC=true before"),
        ({"HCCL_DETERMINISTIC": "false"}, "HCCL_DETERMINISTIC is false; export HCCL_DETERMINISTIC=true before"),
        ({"CLOSE_MATMUL_K_SHIFT": "0"}, "CLOSE_MATMUL_K_SHIFT is 0; export CLOSE_MATMUL_K_SHIFT=1 before"),
    ],
)
def test_an_environment_that_asks_for_another_order(change: dict[str, str], found: str) -> None:
    with pytest.raises(UserError, match=f"^attention.deterministic = true: {found}") as raised:
        make_deterministic("npu", {**NPU_ENVIRONMENT, **change})
    assert "\n" not in str(raised.value) and not torch.are_deterministic_algorithms_enabled()
