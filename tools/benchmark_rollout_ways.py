"""Both networks of frame as prompt with random weights, and the ways to sample with them, for benchmark_rollout.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

NETWORKS = ("decoder", "factorised")
WAYS = ("uncached", "recompute", "keep")
CHANNELS = 4
Way = Callable[[], "Iterator[tuple[Any, int]]"]
"""A rollout: each chunk's latents, and the bytes that its cache holds."""


@dataclass(frozen=True)
class Shape:
    """Of the network, of its frames, of a rollout.  grid: patch rows and columns."""

    layers: int
    hidden: int
    heads: int
    grid: tuple[int, ...]
    given: int
    chunk: int
    chunks: int
    steps: int

    def __str__(self) -> str:
        rows, columns = self.grid
        return (
            f"{self.layers} layers of {self.hidden}, {self.heads} heads, float32; frames of {rows}x{columns} patches; "
            f"{self.chunks} chunks of {self.chunk} after {self.given} given frames, a window of "
            f"{self.given + self.chunk}, {self.steps} steps"
        )


def ways_of(network: str, shape: Shape, short: bool = False) -> dict[str, Way]:
    """Name -> a rollout; short: of a single step."""
    asked = replace(shape, steps=1, chunks=2) if short else shape
    # megatron-core looks for its device as it is imported.
    _network(network, shape)
    rollout = {"decoder": _decoder, "factorised": _factorised}[network]

    def way(name: str) -> Way:
        return lambda: rollout(shape, asked, name)

    return {name: way(name) for name in WAYS}


@cache
def _network(network: str, shape: Shape) -> tuple[Any, Any]:
    """(the network, its configuration)."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    import torch
    from megatron.core import parallel_state

    from megatron_videogpt.config.schema import Config, ModelConfig, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.objective.frame_prompt.factorised.options import FactorisedOptions
    from megatron_videogpt.objective.frame_prompt.options import FramePromptOptions
    from megatron_videogpt.platforms import world
    from tools.measuring.networks import spread

    layers: dict[str, Any] = {}
    if network == "factorised":
        layers = {"norm": "layer", "norm_epsilon": 1e-6, "activation": "gelu_tanh", "biases": True, "positions": "none"}
    model = ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=4 * shape.hidden if layers else shape.hidden * 8 // 3 // 16 * 16,
        num_attention_heads=shape.heads,
        position_table_size=max(32, *shape.grid),
        **layers,
    )
    options = FramePromptOptions(
        network=network,
        prompts=(shape.given,),
        chunk=shape.chunk,
        factorised=FactorisedOptions(places=shape.given + shape.chunk),
    )
    config = Config(model=model, objective=options, train=TrainConfig(precision="fp32", platform="cpu"))
    if not parallel_state.model_parallel_is_initialized():
        world.start(platform, config.parallel)
    built = build_network(config, CHANNELS, platform, "ranged")
    with torch.no_grad():
        load_released(built, model, lambda entry: spread(entry, config, CHANNELS))
    return built, config


@dataclass(frozen=True)
class Tame:
    """A solver whose latents stay of unit size: what an untrained network predicts would blow them up, and rounding
    with them.
    """

    solver: Any

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solver`."""
        return self.solver.times

    def draws(self, number: int) -> bool:
        """See `Solver`."""
        return self.solver.draws(number)

    def step(self, number: int, z: Any, *rest: Any) -> Any:
        """See `Solver`."""
        after = self.solver.step(number, z, *rest)
        return after / after.square().mean().sqrt().clamp(min=1)


def _given(shape: Shape) -> Any:
    from megatron_videogpt.objective.noise import normal

    return normal(0, "given", (shape.given, CHANNELS, 2 * shape.grid[0], 2 * shape.grid[1]))


def _decoder(built_as: Shape, shape: Shape, name: str) -> Iterator[tuple[Any, int]]:
    import torch

    from megatron_videogpt.config.schema import SampleConfig
    from megatron_videogpt.hub.common.sampling_videogpt import Settings
    from megatron_videogpt.objective.frame_prompt.denoiser import build_denoiser
    from megatron_videogpt.objective.frame_prompt.rollout import chunks_of
    from megatron_videogpt.objective.frame_prompt.sampler import keyed_noise

    network, config = _network("decoder", built_as)
    cached = name != "uncached"
    denoiser: Any = build_denoiser([network], replace(config, sample=SampleConfig(cache=cached)), torch.device("cpu"))
    settings = Settings(
        clips=(shape.chunk,) * shape.chunks, window=shape.given + shape.chunk, steps=shape.steps, guidance=1.0
    )
    for (chunk,) in chunks_of(denoiser, [_given(shape)], settings, keyed_noise([0], 0), name == "keep"):
        yield chunk, denoiser.cache.bytes if cached else 0


def _factorised(built_as: Shape, shape: Shape, name: str) -> Iterator[tuple[Any, int]]:
    import torch

    from megatron_videogpt.hub.common.ddpm_solvers import solver_of
    from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Chunks, rollout
    from megatron_videogpt.objective.frame_prompt.factorised.memory import CachedMemory, Told, WholeMemory
    from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
    from megatron_videogpt.objective.noise import normal

    network, config = _network("factorised", built_as)
    told = Told([network], variant_of_run(config), config.model.patch_size, 1, torch.device("cpu"))
    memory: Any = WholeMemory(told) if name == "uncached" else CachedMemory(told, shape.given)

    def noise(video: int, chunk: int, purpose: str, sizes: tuple[int, ...]) -> Any:
        return normal(video, f"{chunk}/{purpose}", sizes)

    settings = Chunks(shape.chunk, shape.chunks, shape.given)
    solver = Tame(solver_of("ddpm", shape.steps))
    for chunk in rollout(memory, _given(shape)[None], settings, solver, noise, anew=name != "keep"):
        yield chunk, memory.kept.bytes if memory.cached else 0
