"""Every backend that can run on this machine against the oracle, over 200 random packed rows and one of a mask with an
order: output and gradients of q, k and v.
"""

from __future__ import annotations

import pytest
import torch

from megatron_videogpt.attention import BACKENDS
from megatron_videogpt.attention.choice import obstacle
from megatron_videogpt.attention.verify import NAMES, errors
from tests.random_layouts import COUNT, over_time, random_case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEAD_DIMS = (64, 96, 128)


def test_the_layouts_hold_what_they_should() -> None:
    cases = [random_case(seed) for seed in range(COUNT)]
    lengths = [len(case.intervals) for case in cases]
    assert min(lengths) < 20 and max(lengths) > 250
    assert sum(len(case.kept) < len(case.intervals) for case in cases) > 20
    assert {case.heads // case.kv_heads for case in cases} == {1, 2, 3}


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.long),
        pytest.param(torch.float16, id="fp16", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_backend_matches_reference(backend: str, dtype: torch.dtype) -> None:
    reason = obstacle(backend, DEVICE, dtype, 96)
    if reason:
        pytest.skip(f"{backend} on {DEVICE} in {dtype}: {reason}")
    random_cases = (random_case(seed, 300 if DEVICE == "cpu" else 3000) for seed in range(COUNT))
    for seed, case in enumerate((*random_cases, over_time())):
        inputs = case.tensors(HEAD_DIMS[seed % 3] if DEVICE == "cuda" else 32, dtype, DEVICE, seed)
        found, allowed = errors(backend, inputs, case.intervals[case.kept].to(DEVICE), deterministic=seed % 2 == 0)
        for name, error, most in zip(NAMES, found, allowed):
            assert error <= most, (seed, name, error, most)
