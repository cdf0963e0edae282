"""The networks of an objective in a run: which are trained, each by an optimizer of its own, which are frozen, and
which follow another one's weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.agreed import choose_attention
from ..checkpoint.parts import SavedPart
from ..config.schema import Config
from ..model.init import initialise
from ..model.layers import describe_kernels
from ..objective.base import Objective, Part, Turn
from ..objective.build import parts_of
from ..platforms import Platform, world
from .optimizer import build_optimizer, whole_parameters, wrap


@dataclass
class Network:
    """One part in this run.

    config: with the part's own optimizer options; model: this rank's chunks, wrapped where they are trained; optimizer:
    None where they are not.
    """

    part: Part
    config: Config
    model: list[Any]
    optimizer: Any

    @property
    def chunks(self) -> list[Any]:
        """This rank's chunks without their wrapping."""
        return [chunk.module for chunk in self.model] if self.optimizer is not None else self.model


def build_chunks(config: Config, channels: int, platform: Platform, part: Part | None = None) -> list[Any]:
    """This rank's stage of a part (of the first one) with its start values: one chunk, or `parallel.virtual_pipeline`
    of them.
    """
    backend, reason = choose_attention(config, platform)
    if part is None:
        part = parts_of(config)[0]
        if world.is_rank_zero():
            print(
                f"attention: {backend} ({reason})\nlayers: {describe_kernels(platform.name, config.model)}", flush=True
            )
    chunks: list[Any] = [
        part.build(config, channels, platform, backend, chunk) for chunk in range(config.parallel.virtual_pipeline)
    ]
    if part.start is not None:
        part.start(chunks, config.train.seed)
        return chunks
    for chunk in chunks:
        initialise(chunk, config.model, channels, config.train.seed)
    return chunks


def build_networks(config: Config, channels: int, platform: Platform) -> list[Network]:
    """All parts of the configured objective, the one that is sampled first."""
    networks: list[Network] = []
    for number, part in enumerate(parts_of(config)):
        own = replace(config, optimizer=part.optimizer(config.optimizer))
        if part.average_of:
            # In bf16 an average would stand still: its steps are smaller than a rounding.
            own = replace(own, train=replace(own.train, precision="fp32"))
        chunks = build_chunks(own, channels, platform, part if number else None)
        if part.trained:
            model = wrap(own, chunks)
            networks.append(Network(part, own, model, build_optimizer(own, model)))
            continue
        for chunk in chunks:
            chunk.requires_grad_(False).eval()
        networks.append(Network(part, own, chunks, None))
    follow(networks)
    return networks


def turns(networks: Sequence[Network]) -> Iterator[tuple[Network, Turn]]:
    """Every trained network with its turn."""
    asked: dict[str, nn.Module] = {network.part.name: network.chunks[0] for network in networks}
    for number, network in enumerate(networks):
        if network.optimizer is not None:
            yield network, Turn(network.part.name, number == 0, asked)


@contextlib.contextmanager
def alone(networks: Sequence[Network], mine: Network) -> Iterator[None]:
    """Inside, only the weights of one of the trained networks get gradients."""
    others = [one for one in networks if one.optimizer is not None and one is not mine]
    parameters = [parameter for one in others for parameter in _parameters(one)]
    # megatron-core's hooks for parameters that are still on their way insist on gradients.
    with whole_parameters([chunk for one in others for chunk in one.model]):
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


def _parameters(network: Network) -> list[nn.Parameter]:
    return [parameter for chunk in network.chunks for parameter in chunk.parameters()]


@torch.no_grad()
def follow(networks: Sequence[Network], taken: dict[str, Tensor] | None = None) -> None:
    """Move the averages after a step: taken has, by part, whether it was taken (bool ``[]`` on the device).  Without
    it, start them from the weights.
    """
    by_name = {network.part.name: network for network in networks}
    for network in networks:
        source = network.part.average_of
        if not source:
            continue
        if source not in by_name:
            raise ValueError(f"part {network.part.name!r} follows {source!r}; there are {sorted(by_name)}")
        weight: Any = 1.0 if taken is None else (1.0 - network.part.decay) * taken[source].float()
        # Where the new weights are still on their way from other ranks, this waits for them.
        with whole_parameters(by_name[source].model):
            for mine, theirs in zip(_parameters(network), _parameters(by_name[source]), strict=True):
                mine.lerp_(theirs.to(mine.dtype), weight)


def saved_parts(networks: Sequence[Network]) -> list[SavedPart]:
    """What checkpoints hold beside the first part: the others that are trained, and averages."""
    return [
        SavedPart(network.part.name, network.chunks, network.optimizer)
        for network in networks[1:]
        if network.optimizer is not None or network.part.average_of
    ]


def check_names(objective: Objective, networks: Sequence[Network]) -> None:
    """Our own mistakes, in one place: two parts of one name, a first one that is frozen, metrics of no turn."""
    names = [network.part.name for network in networks]
    assert len(set(names)) == len(names), f"parts of one name: {names}"
    assert networks[0].optimizer is not None, f"the first part, {names[0]!r}, must be trained"
    trained = {"", *(network.part.name for network in networks[1:] if network.optimizer is not None)}
    unknown = {metric.part for metric in objective.metrics} - trained
    assert not unknown, f"metrics of {sorted(unknown)}, which have no turn of their own"
