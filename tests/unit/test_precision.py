"""`train.precision=auto`: bf16 where the processor multiplies it, what a run was begun in, and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.platforms import Platform, cpu


def resolved(platform: Platform, saved: Any = None, precision: str = "auto") -> str:
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.resolved import with_precision

    config = Config(train=TrainConfig(precision=precision, output="nowhere"))
    return with_precision(config, saved, platform, world.control_group(1.0)).train.precision


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("bf16, expected", [(True, "bf16"), (False, "fp32")])
def test_the_processor_decides_and_it_is_said(
    platform: Platform, capsys: pytest.CaptureFixture[str], bf16: bool, expected: str
) -> None:
    assert resolved(replace(platform, bf16=bf16)) == expected
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"precision: {expected} (") and platform.device_name in line


@pytest.mark.usefixtures("processes")
def test_a_run_goes_on_in_the_precision_of_its_checkpoint(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = SimpleNamespace(config=Config(train=TrainConfig(precision="fp32")), path=Path("runs/a/step_5"))
    assert resolved(replace(platform, bf16=True), saved) == "fp32"
    assert capsys.readouterr().out == "precision: fp32 (as in runs/a/step_5)\n"


@pytest.mark.usefixtures("processes")
def test_what_was_asked_for_stays(platform: Platform) -> None:
    assert resolved(replace(platform, bf16=False), precision="bf16") == "bf16"


@pytest.mark.parametrize("has", [(True, False), (False, True), (False, False)])
def test_instructions_of_x86(monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool]) -> None:
    """AVX512-BF16 and AMX each do; a torch that cannot tell counts as no."""
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), has):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert cpu.has_bf16_products() is any(has)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert cpu.has_bf16_products() is False


def test_nothing_is_built_before_it_is_decided(platform: Platform) -> None:
    from megatron_videogpt.model.layers import transformer_config

    with pytest.raises(AssertionError, match="resolved before anything is built"):
        transformer_config(Config(train=TrainConfig(precision="auto")), "cpu", "ranged")
