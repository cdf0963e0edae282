"""Who accumulates weight gradients: what `auto` means, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.errors import RunError, UserError
from megatron_videogpt.platforms import Platform

pytestmark = pytest.mark.usefixtures("processes")


def config_of(asked: str = "auto", precision: str = "bf16") -> Config:
    values = {"parallel": {"gradient_accumulation_fusion": asked}, "train": {"precision": precision}}
    return config_from_dict(values)


@pytest.fixture
def cuda(platform: Platform) -> Platform:
    return replace(platform, name="cuda")


def resolved(config: Config, platform: Platform) -> str:
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.resolved import with_fusion

    return with_fusion(config, platform, world.control_group()).parallel.gradient_accumulation_fusion


def test_auto(platform: Platform, cuda: Platform, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from megatron_videogpt.train import resolved as module

    assert resolved(config_of(), platform) == "off" and not capsys.readouterr().out
    assert resolved(config_of(), cuda) == "off"
    line = "weight gradients are added up apart (NVIDIA Apex's extension fused_weight_gradient_mlp_cuda cannot be"
    assert capsys.readouterr().out.startswith(line)
    monkeypatch.setattr(module, "obstacle", lambda name: "")
    assert resolved(config_of(), cuda) == "on"
    assert capsys.readouterr().out == "weight gradients are added up in the kernels that compute them (NVIDIA Apex)\n"
    assert resolved(config_of(precision="fp32"), cuda) == "off" and "this is fp32" in capsys.readouterr().out
    assert resolved(config_of("on", "fp32"), cuda) == "on" and resolved(config_of("off"), cuda) == "off"
    monkeypatch.setattr(module, "parts_of", lambda config: (1, 2))
    assert resolved(config_of(), cuda) == "off" and "several networks" in capsys.readouterr().out


def test_what_is_refused(cuda: Platform, platform: Platform) -> None:
    from megatron_videogpt.objective.base import Balanced, Score
    from megatron_videogpt.train.step import check_fusion

    with pytest.raises(RunError, match=r"fusion = on, but NVIDIA Apex's kernel is for NVIDIA GPUs, and this is cpu; "):
        resolved(config_of("on"), platform)
    with pytest.raises(RunError, match="cannot be imported"):
        resolved(config_of("on"), cuda)
    chunk = torch.nn.Linear(2, 2)
    one = torch.ones(())
    plain = Score(one, 1, one, one)
    weighed = replace(plain, balanced=(Balanced(one, chunk.weight),))
    for fused, score in ((False, weighed), (True, plain)):
        chunk.config = type("Config", (), {"gradient_accumulation_fusion": fused})()
        check_fusion([chunk], score)
    with pytest.raises(UserError, match="use parallel.gradient_accumulation_fusion=off"):
        check_fusion([chunk], weighed)


def test_a_model_without_the_kernel_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling on a CPU, say, from what was trained with it on a GPU."""
    from megatron_videogpt.model import accumulation

    assert not accumulation.fuses(config_of("on"), "cpu") and not accumulation.fuses(config_of("on"), "cuda")
    monkeypatch.setattr(accumulation, "obstacle", lambda platform: "")
    assert accumulation.fuses(config_of("on"), "cuda") and not accumulation.fuses(config_of("auto"), "cuda")
