"""Training over stand-ins for torch_npu, HCCL and MindSpeed gives the CPU platform's numbers: real processes, started
afresh, whose adaptor does what MindSpeed does to a process.

The stand-ins know nothing of kernels: what is shown is that start-up, redirections, collectives and dtypes are right.
All of it with MindSpeed, in four processes too, is what `test_check_mindspeed.py` has launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.npu_runs import HAS, checks, command, found_in, search_path, words

from .launch import run

NEEDS = {"mindspeed": HAS, "megatron_adaptor": ("torch_npu", "megatron_adaptor", "einops"), "own": ("torch_npu",)}
Launched = Callable[[str, int, bool], dict[str, Any]]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """`launched(adaptor, processes, short)`: what the worker found there; "cpu" is the CPU platform."""
    done: dict[tuple[str, int, bool], dict[str, Any]] = {}

    def launch(adaptor: str, processes: int, short: bool) -> dict[str, Any]:
        key = (adaptor, processes, short)
        if key not in done:
            folder = tmp_path_factory.mktemp(f"{adaptor}_{processes}")
            cold = {"cold": True, "PYTHONPATH": search_path(*NEEDS[adaptor])} if adaptor != "cpu" else {}
            platform = ("npu", adaptor) if cold else ("cpu", "auto")
            asked = words(*platform, processes, folder, short)
            result = run(command(processes, asked), timeout=1200, **cold)
            assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
            done[key] = found_in(folder)
        return done[key]

    return launch


def agree(adaptor: str, processes: int, launched: Launched, short: bool = False) -> None:
    found, expected = launched(adaptor, processes, short), launched("cpu", 1, short)
    wrong = [check.line() for check in checks(processes, found, expected) if not check.good]
    assert not wrong, "\n".join(wrong)
    if processes > 1:
        assert ["hccl", "allreduce", "int64"] in found["sent"] and ["hccl", "allreduce", "float32"] in found["sent"]


def test_the_runs_are_not_trivial(launched: Launched) -> None:
    """A loss that stands still, or a clip of nothing, would compare equal to anything."""
    expected = launched("cpu", 1, True)
    losses = expected["one process"]["losses"]
    assert len(losses) == 6 and min(abs(a / b - 1) for a, b in zip(losses, losses[1:])) > 1e-4
    assert len(expected["resumed"]["losses"]) == 3
    sampled = expected["one process"]["sampled"]
    assert len(sampled) > 50 and max(sampled) - min(sampled) > 0.1
    assert expected["bf16"]["losses"] != losses[:4]


@pytest.mark.parametrize("processes", [1, 2])
def test_with_mindspeed(processes: int, launched: Launched) -> None:
    agree("mindspeed", processes, launched, short=True)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_with_torch_npu_alone(processes: int, launched: Launched) -> None:
    agree("own", processes, launched)


@pytest.mark.long
def test_with_the_successor_of_mindspeed(launched: Launched) -> None:
    agree("megatron_adaptor", 1, launched)
