"""`torch.npu.random`: the CPU's generator, which is the only one here."""

from __future__ import annotations

from typing import Any

import torch

__all__ = "get_rng_state set_rng_state manual_seed manual_seed_all seed initial_seed".split()


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    """Of the CPU."""
    return torch.default_generator.get_state()


def set_rng_state(state: torch.Tensor, device: Any = "npu") -> None:
    """Of the CPU."""
    torch.default_generator.set_state(state)


def manual_seed(seed: int) -> None:
    """Of the CPU."""
    torch.default_generator.manual_seed(seed)


manual_seed_all = manual_seed


def seed() -> None:
    """Of the CPU."""
    torch.default_generator.seed()


def initial_seed() -> int:
    """Of the CPU."""
    return torch.default_generator.initial_seed()
