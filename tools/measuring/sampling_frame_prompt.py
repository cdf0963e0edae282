"""Frame as prompt: long videos, chunk by chunk over a window that moves, with a cache of finished frames and without,
for both networks.

A video goes on from --given frames by --chunks chunks of --chunk frames; a chunk is made in --steps steps and sees a
window of given frames and a chunk.

  decoder     uncached; recompute (at the window's end what is left is computed anew: the same frames as without a
              cache); keep (keys and values stay, as published)
  factorised  the same three

`times as fast` is uncached seconds by those of the way, by the clock and in CPU seconds of the process (which other
work on the machine does not lengthen as much).  `difference` is the largest one to the frames without a cache, as a
fraction of the largest value: of all chunks, but of the first alone for keep, which later is another result.  `MiB`
is what the cache's buffers hold after the first chunk, the second and the last: from the second on the window is full,
and it must not grow.

The number of steps matters: a cache saves in every step, and costs a pass between two chunks.  The published sampler
takes 100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError
from tools.measuring.clock import in_turns
from tools.measuring.report import markdown, numbers

NETWORKS = ("decoder", "factorised")
WAYS = ("uncached", "recompute", "keep")
CHANNELS = 4
DEFAULTS: dict[str, Any] = {"layers": 4, "hidden": 256, "heads": 4, "repeat": 2}
QUICK: dict[str, Any] = {
    **{"layers": 2, "hidden": 32, "heads": 2, "grid": (2, 2), "given": 3, "chunk": 2, "chunks": 3, "steps": 2},
    **{"repeat": 1},
}
Way = Callable[[], "Iterator[tuple[Any, int]]"]
"""A rollout: each chunk's latents, and the bytes that its cache holds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this objective."""
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="which to measure (default: both)"
    )
    parser.add_argument("--grid", type=numbers, default=(6, 6), help="patch rows and columns of a frame (default 6,6)")
    parser.add_argument("--given", default=25, help="frames to begin with (default: %(default)s)", **number)
    parser.add_argument("--chunk", default=8, help="frames of a chunk (default: %(default)s)", **number)
    parser.add_argument("--chunks", default=8, help="how many (default: %(default)s)", **number)
    parser.add_argument("--steps", default=100, help="of a chunk (default: %(default)s, as published)", **number)
    parser.add_argument("--plot", type=paths.path, help="also draw seconds and memory into this PNG")


def check(options: argparse.Namespace) -> None:
    """UserError for sizes that nothing can be measured with."""
    for name in ("given", "chunk", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.chunks < 2:
        raise UserError(f"--chunks {options.chunks}: must be at least 2, so that the window moves")
    if len(options.grid) != 2 or min(options.grid) < 1:
        raise UserError(f"--grid {','.join(map(str, options.grid))}: give rows and columns, such as 8,8")


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


def shape_of(options: argparse.Namespace) -> Shape:
    """What is asked for."""
    sizes = options.layers, options.hidden, options.heads, options.grid
    return Shape(*sizes, options.given, options.chunk, options.chunks, options.steps)


def describe(options: argparse.Namespace) -> str:
    """What is measured, in a sentence."""
    return f"{shape_of(options)}; least seconds of {options.repeat} runs"


def ways_of(network: str, shape: Shape, short: bool = False) -> dict[str, Way]:
    """Name -> a rollout; short: of a single step."""
    asked = replace(shape, steps=1, chunks=2) if short else shape
    rollout = {"decoder": _decoder, "factorised": _factorised}[network]

    def way(name: str) -> Way:
        return lambda: rollout(shape, asked, name)

    return {name: way(name) for name in WAYS}


@cache
def _network(network: str, shape: Shape) -> tuple[Any, Any]:
    """(the network, its configuration)."""
    from megatron_videogpt.config.schema import Config, ModelConfig, TrainConfig
    from megatron_videogpt.objective.frame_prompt.factorised.options import FactorisedOptions
    from megatron_videogpt.objective.frame_prompt.options import FramePromptOptions
    from tools.measuring.networks import network as built

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
    return built(config, CHANNELS), config


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


def roll(way: Way, advance: Callable[[int], None]) -> tuple[dict[str, Any], list[Any]]:
    """(seconds and the cache's bytes after each chunk, the chunks) of a rollout."""
    advance(0)
    wall, cpu = time.perf_counter(), time.process_time()
    made, held = [], []
    for chunk, size in way():
        made.append(chunk)
        held.append(size)
        advance(1)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "bytes": held}, made


def compare(ways: dict[str, Way], repeat: int, advance: Callable[[str, int], None]) -> dict[str, dict[str, Any]]:
    """Way -> its fastest run, its cache's bytes after each chunk, and its difference."""
    best: dict[str, dict[str, Any]] = {}
    frames: dict[str, list[Any]] = {}
    runs = {name: partial(roll, way, partial(advance, name)) for name, way in ways.items()}
    for name, (taken, frames[name]) in in_turns(runs, repeat):
        before = best.get(name, taken)
        best[name] = taken | {key: min(before[key], taken[key]) for key in ("wall", "cpu")}
    for name, found in best.items():
        count = 1 if name == "keep" else len(frames[name])
        pairs = list(zip(frames[name][:count], frames["uncached"]))
        largest = max(float(wanted.abs().max()) for _, wanted in pairs)
        found["difference"] = max(float((ours - wanted).abs().max()) for ours, wanted in pairs) / largest
        found |= {f"{key}_ratio": best["uncached"][key] / found[key] for key in ("wall", "cpu")}
    return best


def measure(options: argparse.Namespace, bar: Any, save: Callable[[dict[str, Any]], None]) -> str:
    """Both networks -> Markdown.  bar: `rich`'s; save: what there is so far."""
    shape, results = shape_of(options), {}
    task = bar.add_task("", total=len(options.networks) * len(WAYS) * options.repeat * options.chunks)
    for network in options.networks:
        # The first call of everything loads and allocates.
        for way in ways_of(network, shape, short=True).values():
            list(way())

        def advance(name: str, chunks: int, network: str = network) -> None:
            bar.update(task, description=f"{network}, {name}", advance=chunks)

        results[network] = compare(ways_of(network, shape), options.repeat, advance)
        save({"shape": asdict(shape), "repeat": options.repeat, "threads": options.threads, "networks": results})
    if options.plot:
        plot(results, options.plot)
    return table(results)


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown."""
    columns = ["network", "way", "seconds", "times as fast", "CPU seconds", "times as fast", "MiB of the cache"]
    rows = []
    for network, ways in results.items():
        for name, one in ways.items():
            times = f"{one['wall']:.2f}", f"**{one['wall_ratio']:.2f}**", f"{one['cpu']:.2f}", f"{one['cpu_ratio']:.2f}"
            held = ", ".join(f"{one['bytes'][number] / 2**20:.1f}" for number in (0, 1, -1))
            rows.append([network, name, *times, held, f"{one['difference']:.0e}"])
    return markdown([*columns, "difference"], rows)


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Seconds of every way, and the cache's memory by number of chunks, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (network, ways) in enumerate(results.items()):
        for number, name in enumerate(WAYS):
            bar = left.bar(
                4 * place + number, ways[name]["wall"], color=f"C{number}", label=name if not place else None
            )
            left.bar_label(bar, [f"{ways[name]['wall_ratio']:.2f}x"])
            if name != "uncached":
                held = [size / 2**20 for size in ways[name]["bytes"]]
                right.plot(range(1, len(held) + 1), held, marker="o", label=f"{network}, {name}")
    left.set_xticks([4 * place + 1 for place in range(len(results))], list(results))
    left.set(ylabel="seconds of the rollout")
    left.margins(y=0.15)
    right.margins(y=0.15)
    right.set(xlabel="chunks", ylabel="MiB of the cache", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
