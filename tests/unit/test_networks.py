"""Networks beside the one that is sampled: averages to be called, frozen ones, and whose weights get gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A model in bf16, a second one, an average of the first, a frozen one."""
    from megatron_videogpt.objective.base import Part
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.platforms import activate
    from megatron_videogpt.train import networks as module
    from tests.session import Session

    def ones(chunks: Any, seed: int) -> None:
        for parameter in (p for chunk in chunks for p in chunk.parameters()):
            parameter.data.fill_(1.0)

    slower = replace(Session(precision="bf16").config.optimizer, lr=1e-4)
    parts = (
        Part("model", build_network),
        Part("critic", build_network, optimizer=lambda options: slower),
        Part("average", build_network, trained=False, average_of="model", decay=0.999),
        Part("teacher", build_network, trained=False, start=ones),
    )
    monkeypatch.setattr(module, "parts_of", lambda config: parts)
    return module.build_networks(Session(precision="bf16").config, 4, activate("cpu"))


def test_an_average_follows_in_small_steps(networks: list[Any]) -> None:
    """Closed form of a hundred steps towards weights that stay; in bf16 not one of them would have moved it."""
    from megatron_videogpt.train.networks import follow

    model, _, average, _ = networks
    (mine,), (theirs,) = average.chunks, model.chunks
    pairs = list(zip(mine.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(a, b.float()) and a.dtype is torch.float32 and b.dtype is torch.bfloat16 for a, b in pairs)
    start = [parameter.clone() for parameter in mine.parameters()]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1.0)
    taken = {"model": torch.tensor(True), "critic": torch.tensor(True)}
    for _ in range(100):
        follow(networks, taken)
    follow(networks, {"model": torch.tensor(False), "critic": torch.tensor(True)})
    for before, (now, goal) in zip(start, pairs):
        torch.testing.assert_close(now, goal.float() + 0.999**100 * (before - goal.float()), rtol=1e-5, atol=1e-6)


def test_a_turn_has_gradients_for_its_own_weights_alone(networks: list[Any]) -> None:
    from megatron_videogpt.train.networks import alone, saved_parts, turns

    model, critic, average, teacher = networks
    assert [turn.part for _, turn in turns(networks)] == ["model", "critic"]
    assert [turn.label for _, turn in turns(networks)] == ["", "critic"]
    for network in (model, critic):
        with alone(networks, network):
            for one in networks:
                wanted = one is network
                assert all(p.requires_grad == wanted for chunk in one.chunks for p in chunk.parameters())
    assert all(p.requires_grad for one in (model, critic) for chunk in one.chunks for p in chunk.parameters())
    assert all(bool((p == 1).all()) for chunk in teacher.chunks for p in chunk.parameters())
    assert (model.config.optimizer.lr, critic.config.optimizer.lr) == (1e-2, 1e-4)
    # What is frozen gets its weights anew at every start.
    assert [part.name for part in saved_parts(networks)] == ["critic", "average"]
