"""Which backend runs, and that none runs which computes something wrong."""

from __future__ import annotations

import logging

import pytest
import torch

from megatron_videogpt.attention import BACKENDS, attend, choice, ranged, reference, verify
from megatron_videogpt.attention.choice import candidates, choose, select
from megatron_videogpt.attention.tiles import tiles

CPU = torch.device("cpu")


def test_auto_takes_the_first_that_can_run() -> None:
    assert select("auto", "cpu", torch.float32, 96)[0] == "ranged"
    assert select("auto", "npu", torch.bfloat16, 96)[0] == "npu"
    assert [name for name, _ in candidates("auto", "npu", torch.float32, 96)] == ["npu", "npu_dense", "ranged"]
    assert select("auto", "npu", torch.float64, 96)[0] == select("auto", "npu", torch.float32, 769)[0] == "ranged"
    names = [name for name, _ in candidates("auto", "cuda", torch.float64, 96, (9, 0))]
    assert names == ["ranged"]
    names = [name for name, _ in candidates("auto", "cuda", torch.float32, 96, (8, 0))]
    assert "flash" not in names and names[-1] == "ranged"
    ((name, reason),) = candidates("auto", "cuda", torch.bfloat16, 12, (9, 0))
    assert name == "ranged" and "not flash:" in reason and "not triton:" in reason and "not flex: " in reason
    # FlashAttention-4 cannot add in a fixed order (or is not installed): either way it is not the choice then.
    names = [name for name, _ in candidates("auto", "cuda", torch.bfloat16, 96, (9, 0), deterministic=True)]
    assert names == ["triton", "flex", "ranged"]


def test_a_named_backend_comes_first_and_must_fit() -> None:
    assert select("reference", "cuda", torch.float64, 96) == ("reference", "as configured")
    assert [name for name, _ in candidates("reference", "cpu", torch.float32, 96)] == ["reference", "ranged"]
    with pytest.raises(ValueError, match="no backward on cpu.*auto or ranged"):
        select("flex", "cpu", torch.float32, 96)
    with pytest.raises(ValueError, match="'triton'.*CUDA only.*auto or ranged"):
        select("triton", "npu", torch.bfloat16, 96)
    with pytest.raises(ValueError, match="'sdpa'.*auto, reference, ranged, flex, triton, flash"):
        select("sdpa", "cuda", torch.float32, 96)
    with pytest.raises(ValueError, match=r"attention\.choice"):
        attend("auto", *[torch.ones(2, 1, 4)] * 3, torch.tensor([[0, 2, 0, 0]] * 2, dtype=torch.int32), 1.0)


@pytest.mark.parametrize(
    "tile, backend", [((128, 128), "triton"), ((128, 128), "flex"), ((192, 128), "flash"), ((64, 64), "ranged")]
)
def test_the_mask_of_the_check_has_tiles_of_every_kind(tile: tuple[int, int], backend: str) -> None:
    partial, full = tiles(verify.mask(backend), *tile)
    assert partial.any() and full.any() and (~partial & ~full).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranged_passes_the_check(dtype: torch.dtype) -> None:
    assert choose("auto", CPU, dtype, 24, queries_per_key=2)[0] == "ranged"


def _off(which: int) -> object:
    """`ranged` with an error of 1 % in the output (0) or in the gradient of q, k or v (1, 2, 3)."""
    true = ranged.attend

    def run(*args: object) -> torch.Tensor:
        inputs = list(args)
        if which:
            inputs[which - 1] = inputs[which - 1] * 1.01 - (inputs[which - 1] * 0.01).detach()  # type: ignore[operator]
        out = true(*inputs)  # type: ignore[arg-type]
        return out if which else out * 1.01

    return run


@pytest.mark.parametrize("which, name", list(enumerate(verify.NAMES)))
def test_wrong_numbers_stop_the_run(which: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "attend", _off(which))
    with pytest.raises(choice.WrongHere, match=f"ranged differs from reference on cpu.*: {name} by 1.0e-02"):
        choose("auto", CPU, torch.float32, 16)


def test_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "attend", lambda q, k, v, *rest: (q + k + v) * float("nan"))
    with pytest.raises(choice.WrongHere, match="output by inf"):
        choose("ranged", CPU, torch.bfloat16, 16)


def test_a_backend_that_cannot_start_is_passed_over_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nand a long tail")

    monkeypatch.setattr(reference, "attend", broken)
    real = verify.errors
    # The oracle itself is the broken one here, so that the check of the next backend must not use it.
    monkeypatch.setattr(
        verify,
        "errors",
        lambda name, *rest: broken() if name == "reference" else real(name, *rest)._replace(found=[0.0] * 4),
    )
    monkeypatch.setattr(reference, "attend", ranged.attend)
    with caplog.at_level(logging.WARNING):
        assert choose("reference", CPU, torch.float32, 16) == ("ranged", "reference did not work")
    assert "attention backend reference does not work here: RuntimeError: no kernel image; trying ranged" in caplog.text


def test_all_ranks_take_the_same() -> None:
    asked: list[int] = []

    def other_rank_fails_first(outcome: int) -> int:
        asked.append(outcome)
        return max(outcome, 1 if len(asked) == 1 else 0)

    assert choose("reference", CPU, torch.float32, 16, worst=other_rank_fails_first)[0] == "ranged"
    with pytest.raises(ValueError, match="device of another rank") as error:
        choose("auto", CPU, torch.float32, 16, worst=lambda outcome: 2)
    assert not isinstance(error.value, choice.WrongHere)
    with pytest.raises(ValueError, match="no attention backend works on cpu: tried ranged"):
        choose("auto", CPU, torch.float32, 16, worst=lambda outcome: 1)


def test_every_backend_has_a_module_of_its_name() -> None:
    for device in ("cpu", "cuda", "npu"):
        assert set(choice.ORDER[device]) <= set(BACKENDS)
