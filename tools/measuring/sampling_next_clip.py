"""Next clip diffusion with and without a cache of the history's keys and values.

First a rollout of 24 frames after 56 given ones, in clips of 8, 8 and 8; then one clip after each number of given
frames.  Both ways run the same model with the same noise and get the same result, whose largest difference is shown.
Without a cache every step computes the whole history again; the guidance branch without history is a short sequence
in the same packed row there as well, so that neither way computes padding.  With a cache, all that it takes counts:
encoding the history, and at every further clip the clip before.

Columns: seconds of the whole rollout, CPU seconds of the process (which other processes on the machine do not
lengthen), their ratio, milliseconds that the history takes (all clips together) and that a step takes (mean).  Peak
memory is what a rollout adds to the resident set at most (the model is not in it), in runs of their own after all
others, with one step a clip, on whose number it does not depend.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from megatron_videogpt.errors import UserError
from tools.measuring.clock import highest_memory, in_turns
from tools.measuring.report import markdown, numbers

CHANNELS = 4
DEFAULTS: dict[str, Any] = {"layers": 4, "hidden": 256, "heads": 4, "repeat": 1}
QUICK: dict[str, Any] = {
    **{"layers": 2, "hidden": 32, "heads": 2, "grid": (2, 3), "steps": 2},
    **{"rollout": (6, 2, 2), "histories": (2, 6), "clips": (2,)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this objective."""
    parser.add_argument("--kv-heads", type=int, help="key-value heads; default: as many as heads")
    parser.add_argument(
        "--grid", type=numbers, default=(6, 10), help="patch rows and columns of a frame (default 6,10)"
    )
    parser.add_argument(
        "--rollout",
        type=numbers,
        default=(56, 8, 8, 8),
        metavar="H,CLIP,...",
        help="of the first table: given frames, then clips",
    )
    parser.add_argument(
        "--histories", type=numbers, default=(8, 24, 56, 120), help="given frames of the second table, comma-separated"
    )
    parser.add_argument("--clips", type=numbers, default=(8, 24), help="clips of the second table, one in each rollout")
    parser.add_argument("--steps", type=int, default=10, help="Euler steps of a clip")
    parser.add_argument("--guidance", type=float, default=3.0, help="scale of guidance; 1 for none")


def check(options: argparse.Namespace) -> None:
    """UserError for sizes that nothing can be measured with."""
    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: must be at least 1")
    given, *clips = options.rollout
    if min(given, *options.histories) < 0 or not clips or min(*clips, *options.clips) < 1:
        raise UserError("--rollout, --histories, --clips: expected positive numbers (histories may be 0)")
    if len(options.grid) != 2 or min(options.grid) < 1:
        raise UserError(f"--grid {','.join(map(str, options.grid))}: give rows and columns, such as 6,10")


@dataclass(frozen=True)
class Shape:
    """The model and its frames.  grid: patch rows and columns."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A rollout of one video: given frames, then clips."""

    history: int
    clips: tuple[int, ...]
    steps: int
    guidance: float

    def __str__(self) -> str:
        return f"{self.history} + {', '.join(map(str, self.clips))}"


@dataclass
class Taken:
    """Seconds by the clock and of the CPU; of them for the history, and for a step."""

    wall: float
    cpu: float
    remember: float
    step: float


def shape_of(options: argparse.Namespace) -> Shape:
    """The model that is asked for."""
    return Shape(options.layers, options.hidden, options.heads, options.kv_heads or options.heads, options.grid)


def describe(options: argparse.Namespace) -> str:
    """What is measured, in a sentence."""
    shape, grid = shape_of(options), "x".join(map(str, options.grid))
    heads = f"{shape.heads} heads" + (f" ({shape.kv_heads} key-value)" if shape.kv_heads != shape.heads else "")
    return (
        f"{shape.layers} layers of {shape.width}, {heads}, float32; frames of {grid} patches; {options.steps} steps, "
        f"guidance {options.guidance:g}"
    )


def denoisers(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Both ways to denoise with one model, by name; each call makes a new one, which remembers nothing."""
    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.schema import Config, ModelConfig, SampleConfig, TrainConfig
    from tools.measuring.networks import network

    model = ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        ffn_hidden_size=shape.width * 8 // 3 // 16 * 16,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        position_table_size=max(32, *shape.grid),
    )
    config = Config(model=model, train=TrainConfig(precision="fp32", platform="cpu"))
    check_config(config, 1)
    built = network(config, CHANNELS)
    import torch

    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser

    configs = {name: replace(config, sample=SampleConfig(cache=name == "cached")) for name in ("uncached", "cached")}
    device = torch.device("cpu")
    return {name: partial(build_denoiser, [built], chosen, device) for name, chosen in configs.items()}


class Watched:
    """A denoiser whose time is taken."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.remembering, self.predicting, self.steps = denoiser, 0.0, 0.0, 0

    def begin(self, conditions: list[Any]) -> None:
        """See `Denoiser.begin`."""
        self.denoiser.begin(conditions)

    def remember(self, histories: list[Any], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        began = time.perf_counter()
        self.denoiser.remember(histories, kept)
        self.remembering += time.perf_counter() - began

    def predict(self, clips: list[Any], t: float, guided: bool) -> Any:
        """See `Denoiser.predict`."""
        began = time.perf_counter()
        result = self.denoiser.predict(clips, t, guided)
        self.predicting += time.perf_counter() - began
        self.steps += 1
        return result


def roll(build: Callable[[], Any], case: Case, shape: Shape) -> tuple[Taken, Any]:
    """One rollout: what it took, and the new latents."""
    from megatron_videogpt.hub.common.sampling_videogpt import Settings, continue_videos
    from megatron_videogpt.objective.next_clip.sampler import keyed_noise
    from megatron_videogpt.objective.noise import normal

    settings = Settings(
        clips=case.clips, window=case.history + sum(case.clips), steps=case.steps, guidance=case.guidance
    )
    history = normal(0, "history", (case.history, CHANNELS, 2 * shape.grid[0], 2 * shape.grid[1]))
    watched = Watched(build())
    wall, cpu = time.perf_counter(), time.process_time()
    (new,) = continue_videos(watched, [history], settings, keyed_noise([0], 0))
    return Taken(
        time.perf_counter() - wall, time.process_time() - cpu, watched.remembering, watched.predicting / watched.steps
    ), new


def compare(build: dict[str, Callable[[], Any]], case: Case, shape: Shape, repeat: int) -> dict[str, Any]:
    """Both ways, alternating; the fastest run of each."""
    best: dict[str, Taken] = {}
    results: dict[str, Any] = {}
    runs = {name: partial(roll, build[name], case, shape) for name in build}
    for name, (taken, results[name]) in in_turns(runs, repeat):
        best[name] = min(best.get(name, taken), taken, key=lambda one: one.cpu)
    error = float((results["cached"] - results["uncached"]).abs().max() / results["uncached"].abs().max())
    ratios = {f"{key}_ratio": getattr(best["uncached"], key) / getattr(best["cached"], key) for key in ("wall", "cpu")}
    ways = {name: asdict(taken) for name, taken in best.items()}
    return {"history": case.history, "clips": case.clips, **ways, **ratios, "error": error}


def measure(options: argparse.Namespace, bar: Any, save: Callable[[dict[str, Any]], None]) -> str:
    """All rollouts, and then their memory -> Markdown.  bar: `rich`'s; save: what there is so far."""
    shape, how = shape_of(options), (options.steps, options.guidance)
    rollout = Case(options.rollout[0], options.rollout[1:], *how)
    single = [Case(history, (clip,), *how) for clip in options.clips for history in options.histories]
    build, cases = denoisers(shape), [rollout, *single]

    def peak(name: str, case: Case) -> float:
        return highest_memory(lambda: roll(build[name], replace(case, steps=1), shape))

    # The first call of everything loads and allocates.
    compare(build, replace(rollout, history=1, clips=(1,)), shape, 1)
    task, results = bar.add_task("", total=2 * len(cases)), []
    told = {"shape": asdict(shape), "rollouts": results}
    for case in cases:
        bar.update(task, description=f"{case} frames")
        results.append(compare(build, case, shape, options.repeat))
        save(told)
        bar.advance(task)
    # What libraries allocate once, at sizes that they have not met before, is not sampling's.
    peak("uncached", rollout)
    for case, result in zip(cases, results):
        bar.update(task, description=f"memory of {case} frames")
        result["peak"] = {name: peak(name, case) for name in build}
        save(told)
        bar.advance(task)
    return f"A rollout of {sum(rollout.clips)} frames:\n\n{table(results[:1])}\n\nOne clip:\n\n{table(results[1:])}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    ways = ("seconds", "CPU seconds", "ms a step", "peak MiB")
    columns = ["frames given + clips", *(f"{way}: without, with" for way in ways), "with: history ms"]
    rows = []
    for row in results:
        old, new = row["uncached"], row["cached"]
        pairs = [f"{old[key]:.2f}, {new[key]:.2f}" for key in ("wall", "cpu")]
        pairs += [f"{1e3 * old['step']:.0f}, {1e3 * new['step']:.0f}"]
        pairs += [f"{row['peak']['uncached']:.0f}, {row['peak']['cached']:.0f}", f"{1e3 * new['remember']:.0f}"]
        ratios = [f"**{row['wall_ratio']:.2f}**", f"{row['cpu_ratio']:.2f}", f"{row['error']:.0e}"]
        rows.append([f"{row['history']} + {', '.join(map(str, row['clips']))}", *pairs, *ratios])
    return markdown([*columns, "ratio", "of CPU seconds", "difference"], rows)
