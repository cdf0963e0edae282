"""Seconds per token and per attended pair of a configured model on this device: the two numbers of `data.cost`, by
which samples are dealt to ranks.

    python tools/fit_cost.py examples/videogpt/stage4.toml --frame 176x320 --fit               # on one GPU; layers are
    left out until the rest fits python tools/fit_cost.py examples/videogpt/quickstart.toml parallel.tensor=1
    parallel.sequence=false --plot fit.png       # on a CPU, a minute torchrun --nproc_per_node=4 tools/fit_cost.py
    examples/videogpt/stage4.toml parallel.tensor=4 parallel.sequence=true --frame 176x320

Times the forward and backward pass of rows with few and many tokens, and with few and many attended pairs for their
tokens (one long sample, or several short ones; one clip, or a clip for each frame), with the trainer's own model,
attention backend and recomputation, on latents of noise.  Then it fits

    seconds = a * tokens + b * pairs + c,      a, b, c >= 0,

by least squares of relative errors.  Paste the line `data.cost=[a, b]` behind your training command.  The constant c
(starting kernels, weights of a small model) is the same for every row, and does not matter for dealing, as all ranks
have equally many rows.  With fewer layers than the model's (--fit, --layers), a and b are scaled to all of them; only
their ratio matters.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402
from scipy.optimize import nnls  # noqa: E402

from megatron_videogpt.codec.geometry import expected_geometry  # noqa: E402
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.config.check import load_checked  # noqa: E402
from megatron_videogpt.config.derived import in_precision  # noqa: E402
from megatron_videogpt.config.schema import Config  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.objective.next_clip.work import clip_work, work_of  # noqa: E402
from megatron_videogpt.plan.estimate import objective_work
from megatron_videogpt.platforms import activate  # noqa: E402
from tools.benchmark_step import frame_of, resolved, with_layers  # noqa: E402

Row = tuple[tuple[int, ...], ...]
"""Clip lengths of every sample of a row."""


@dataclass(frozen=True)
class Fit:
    """seconds = a * tokens + b * pairs + c; errors: of each row, relative to what was measured."""

    a: float
    b: float
    c: float
    errors: np.ndarray


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=paths.path, help="TOML file of a run")
    parser.add_argument("overrides", nargs="*", help="section.option=value")
    parser.add_argument(
        "--frame", help="HEIGHTxWIDTH of the frames in pixels; default: 16:9 videos as the configuration crops them"
    )
    parser.add_argument("--layers", type=int, default=0, help="decoder layers to measure with; default: all")
    parser.add_argument("--fit", action="store_true", help="leave out layers until the device's memory suffices")
    parser.add_argument("--repeats", type=int, default=3, help="times that each row is measured; the fastest counts")
    parser.add_argument("--plot", type=paths.path, help="also draw measured against fitted seconds into this PNG file")
    options = parser.parse_intermixed_args()
    if options.repeats < 1 or options.layers < 0:
        parser.error("--repeats must be at least 1, --layers at least 0")
    return options


def rows_to_time(frames: int) -> list[Row]:
    """Rows of a quarter, half and all of `frames`, as one, two or four samples, each of two clips or of single frames;
    none is longer than one sample can be.
    """
    rows: list[Row] = []
    for share in (4, 2, 1):
        for samples in (1, 2, 4):
            each = frames // share // samples
            if each >= 2:
                rows += [
                    ((each - 1, 1),) * samples,
                    ((each // 2, each - each // 2),) * samples,
                    ((1,) * each,) * samples,
                ]
    return list(dict.fromkeys(rows))


def fit_cost(tokens: Sequence[float], pairs: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Non-negative least squares of relative errors.

    Raises:
        ValueError: fewer than three rows, or seconds that are not above 0.
    """
    measured = np.asarray(seconds, dtype=np.float64)
    columns = np.stack([np.asarray(tokens, np.float64), np.asarray(pairs, np.float64), np.ones(len(measured))], axis=1)
    if len(measured) < 3 or not np.all(measured > 0):
        raise UserError(
            f"{len(measured)} rows with times from {min(seconds, default=0)} s: a fit needs at least 3, all "
            "above 0; use more data.frames"
        )
    relative = columns / measured[:, None]
    scale = relative.max(axis=0)
    solution = nnls(relative / scale, np.ones(len(measured)))[0] / scale
    return Fit(*(float(value) for value in solution), errors=columns @ solution / measured - 1)


def measure(config: Config, platform: Any, frame: tuple[int, int], rows: list[Row], repeats: int) -> list[float]:
    """Seconds of the forward and backward pass of every row on this device: the fastest of `repeats`, as other
    processes only add to it.
    """
    import torch

    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal
    from tools.measuring.steps import Marks, Session, Timed, backends, use_backend

    codec = expected_geometry(config.codec)
    sides = frame[0] // codec.spatial_stride, frame[1] // codec.spatial_stride
    options = argparse.Namespace(backends="")
    session = Session(config, platform, frame, options)
    (backend,) = backends(config, platform, options)
    use_backend(session.chunks, backend)
    times: list[list[float]] = [[] for _ in rows]
    # The first round warms up: kernels are compiled for every shape.
    for repeat in range(repeats + 1):
        for number, row in enumerate(rows):
            samples = [
                Sample(key, "", normal(key, "latents", (sum(clips), codec.channels, *sides)), None, clips)
                for key, clips in enumerate(row)
            ]
            (made,) = session.rows([samples], backend)
            session.current, result = Marks(platform.device), Timed()
            before = session.current.start
            session.queue([made])
            session.current.describe(before, result)
            if repeat:
                times[number].append(result.forward[0] + result.backward[0])
        if int(os.environ.get("RANK", "0")) == 0:
            print(
                f"round {repeat} of {repeats}{'' if repeat else ' (warming up)'}: {len(rows)} rows",
                file=sys.stderr,
                flush=True,
            )
    slowest = torch.tensor([min(values) for values in times])
    torch.distributed.all_reduce(
        slowest,
        op=torch.distributed.ReduceOp.MAX,
        group=None if platform.name == "cpu" else torch.distributed.new_group(backend="gloo"),
    )
    return [float(value) for value in slowest]


def describe(
    config: Config,
    measured: Config,
    rows: list[Row],
    works: list[tuple[float, float]],
    seconds: list[float],
    fit: Fit,
    device: str,
) -> str:
    """What was found, and the line to paste."""
    scale = config.model.num_layers / measured.model.num_layers
    linear, attended = objective_work(config).weights
    ratio = f"{fit.a / fit.b:,.0f}" if fit.b else "infinitely many"
    errors = np.abs(fit.errors)
    lines = [
        f"{device}: {measured.model.num_layers} of {config.model.num_layers} layers, recompute "
        f"{measured.parallel.recompute}, {len(rows)} rows of "
        f"{min(work[0] for work in works):,.0f} to {max(work[0] for work in works):,.0f} tokens, "
        f"{min(seconds):.3g} to {max(seconds):.3g} s",
        f"fit: {fit.a:.3g} s a token, {fit.b:.3g} s a pair, {fit.c:.3g} s a row; error "
        f"{np.median(errors):.1%} (median), {errors.max():.1%} (worst row)",
        f"a token costs as much as {ratio} pairs; by FLOPs, as {linear / attended:,.0f}",
        f"data.cost=[{fit.a * scale:.4g}, {fit.b * scale:.4g}]",
    ]
    return "\n".join(lines)


def plot(path: Path, works: list[tuple[float, float]], seconds: list[float], fit: Fit) -> None:
    """Measured against fitted seconds, coloured by pairs per token."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fitted = np.asarray(seconds) * (1 + fit.errors)
    figure, panel = plt.subplots(figsize=(6, 5))
    panel.plot([0, max(seconds)], [0, max(seconds)], color="grey", linewidth=1)
    points = panel.scatter(seconds, fitted, c=[pairs / tokens for tokens, pairs in works])
    figure.colorbar(points, label="attended pairs a token")
    panel.set(
        xlabel="measured, s", ylabel="fitted, s", title=f"{fit.a:.3g} * tokens + {fit.b:.3g} * pairs + {fit.c:.3g}"
    )
    panel.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, fit and print."""
    options = arguments()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = load_checked(options.config, options.overrides, world)
    if config.parallel.pipeline > 1:
        raise UserError(
            f"parallel.pipeline={config.parallel.pipeline}: must be 1 here, stages would wait for each other; "
            "the cost of a stage has the same ratio"
        )
    # One sample is a row here, whatever the run packs.
    single = replace(config, data=replace(config.data, pack_tokens=0), train=replace(config.train, micro_batch_size=1))
    platform = activate(config.train.platform)
    if config.train.precision == "auto":
        config = in_precision(config, "bf16" if platform.bf16 else "fp32")
    import torch

    torch.set_num_threads(
        config.train.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    )
    frame = frame_of(options, config)
    chosen = resolved(with_layers(single, options.layers or config.model.num_layers), platform, frame, options.fit)
    patches = work_of(config, expected_geometry(config.codec)).patches(*frame)
    rows = rows_to_time(config.data.frames)
    works = [
        (sum(clip_work(clips, patches).tokens for clips in row), sum(clip_work(clips, patches).pairs for clips in row))
        for row in rows
    ]
    if len(rows) < 3:
        raise UserError(f"data.frames={config.data.frames}: must be at least 4, rows of different lengths are needed")
    seconds = measure(chosen, platform, frame, rows, options.repeats)
    fit = fit_cost(*zip(*works), seconds)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"`python tools/fit_cost.py {' '.join(sys.argv[1:])}`\n")
        print(describe(config, chosen, rows, works, seconds, fit, platform.device_name), flush=True)
        if options.plot:
            plot(options.plot, works, seconds, fit)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
