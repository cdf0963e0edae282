"""What encoding costs a training step, shared by the ranks of a replica and done by one: both ways in one run, in
turns.

    torchrun --nproc_per_node=2 tools/benchmark_encoding.py parallel.tensor=2
    torchrun --nproc_per_node=2 tools/benchmark_encoding.py parallel.context=2
    # other frames, a VAE of your own, a model of your own
    torchrun --nproc_per_node=8 tools/benchmark_encoding.py --config examples/videogpt/stage1.toml \\
        --vae /models/sdxl-vae parallel.tensor=8 data.source=videos data.path=/data/videos

The steps are the trainer's own, reading and encoding beside them.  Without --vae the codec is a diffusers AutoencoderKL
of SDXL's architecture with random weights (--small: one of 1/16 of its width), in a temporary folder.  Each round takes
the same samples both ways; their latents must have the same bits.  Options of the run that are not given are those of
--config, but for those in `DEFAULTS`.  On two cores of a CPU it takes some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.config.check import load_checked  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.platforms import activate  # noqa: E402
from tools.measuring.report import machine, markdown  # noqa: E402

DEFAULTS = (
    "codec.name=autoencoder_kl",
    "codec.batch_size=4",
    "data.frames=8",
    "data.clips=[1,8]",
    "data.workers=0",
    "train.global_batch_size=2",
    "train.micro_batch_size=1",
    "train.precision=fp32",
    "train.steps=1000000",
    "checkpoint.every=0",
    "eval.every=0",
    "eval.final_scenes=0",
    "logging.every=1",
    "logging.tensorboard=false",
)
"""Before the options of the command line."""
WIDTHS = (128, 256, 512, 512)
"""Channels of SDXL's VAE at each resolution."""
WAYS = {"off": "one rank of a replica", "on": "all ranks of a replica"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="section.option=value")
    parser.add_argument(
        "--config", type=paths.path, default=ROOT / "examples" / "videogpt" / "quickstart.toml", help="TOML file"
    )
    parser.add_argument("--vae", type=paths.path, help="folder of an AutoencoderKL; default: SDXL's, random weights")
    parser.add_argument("--small", action="store_true", help="without --vae: 1/16 of the channels, to try this tool")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each way in a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often both ways take turns")
    parser.add_argument("--json", type=paths.path, help="also write the log lines of all steps into this file")
    options = parser.parse_intermixed_args()
    if options.steps < 1 or options.rounds < 1:
        parser.error("--steps and --rounds must be at least 1")
    return options


def make_vae(folder: Path, small: bool) -> None:
    """An AutoencoderKL of SDXL's architecture, its weights random."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(width // 16 if small else width for width in WIDTHS),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8 if small else 32,
        sample_size=1024,
        scaling_factor=0.13025,
    )
    vae.save_pretrained(folder)


def noted(data: Iterator[Any], digests: list[str]) -> Iterator[Any]:
    """The same steps, with a digest of the latents of each."""
    for step in data:
        found = hashlib.sha256()
        for sample in step.samples:
            found.update(sample.mean.numpy().tobytes())
        digests.append(found.hexdigest())
        yield step


def measure(run: Any, way: str, steps: int, log: Callable[[dict[str, float]], None]) -> tuple[list[Any], list[str]]:
    """(log lines of so many steps, after one whose encoding nothing can hide; digests of the latents of all)."""
    from megatron_videogpt.train.in_flight import InFlightSteps
    from megatron_videogpt.train.trainer import prefetch_steps

    run.config = replace(run.config, data=replace(run.config.data, share_encoding=way))
    lines: list[dict[str, float]] = []
    digests: list[str] = []
    data = prefetch_steps(run)

    def keep(_: int, line: dict[str, float]) -> None:
        lines.append(line)
        log(line)

    in_flight = InFlightSteps(run, keep)
    given = noted(data, digests)
    for _ in range(steps + 1):
        in_flight.launch(given)
    in_flight.complete()
    in_flight.times.close()
    data.close()
    return lines[1:], digests


def table(lines: dict[str, list[dict[str, float]]]) -> str:
    """Medians of both ways, in Markdown."""
    columns = ["frames are encoded by", "step s", "encoding s", "share of the step", "waited for it s"]
    rows = []
    middle = {
        way: {name: statistics.median(line.get(name, 0.0) for line in its) for name in its[0]}
        for way, its in lines.items()
    }
    for way, named in middle.items():
        step, encoding, waited = (named.get(name, 0.0) for name in ("step_time", "encode_time", "encode_wait"))
        seconds = f"{encoding:.2f}", f"{encoding / step:.0%}", f"{waited:.2f}", f"{waited / step:.0%}"
        rows.append([WAYS[way], f"{step:.2f}", *seconds])
    ratios = [middle["off"][name] / max(middle["on"][name], 1e-9) for name in ("encode_time", "step_time")]
    said = f"Shared, encoding is {ratios[0]:.2f} times as fast, a step {ratios[1]:.2f} times."
    return f"{markdown([*columns, 'share of the step'], rows)}\n\n{said}"


def prepare(options: argparse.Namespace) -> tuple[Any, Any]:
    """(run, folder of temporary files on rank 0): all that a run needs, in a folder that all ranks see."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    first = [f"codec.path={json.dumps(str(options.vae))}"] if options.vae else ['codec.path="(random weights)"']
    config = load_checked(options.config, [*DEFAULTS, *first, *options.overrides], world_size)
    if config.parallel.model_size == 1:
        raise UserError("nothing is shared in replicas of one rank; give parallel.tensor=2 or parallel.context=2")
    platform = activate(config.train.platform, config.train.adaptor)
    import torch

    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.run import build

    world.start(platform, config.parallel)
    holder = tempfile.TemporaryDirectory() if world.is_rank_zero() else None
    named = [holder.name if holder is not None else ""]
    torch.distributed.broadcast_object_list(named)
    folder = Path(named[0])
    if not options.vae:
        if world.is_rank_zero():
            make_vae(folder / "vae", options.small)
        torch.distributed.barrier()
        config = replace(config, codec=replace(config.codec, path=str(folder / "vae")))
    config = replace(config, train=replace(config.train, output=str(folder / "run")))
    return build(config, lambda name, **_: None), holder


def main() -> None:
    """Measure both ways in turns and print a Markdown table."""
    options = arguments()
    run, holder = prepare(options)
    import torch

    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.progress import Progress

    lines: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with Progress(options.rounds * 2 * (options.steps + 1), 0, world.is_rank_zero()) as progress:
        done = [0]

        def log(line: dict[str, float]) -> None:
            done[0] += 1
            progress.update(done[0], line)

        for _ in range(options.rounds):
            consumed, digests = run.state.consumed, {}
            for way in WAYS:
                run.state.consumed = consumed
                measured, digests[way] = measure(run, way, options.steps, log)
                lines[way] += measured
            if digests["off"] != digests["on"]:
                raise RuntimeError(f"latents differ: {digests}")
    if world.is_rank_zero():
        layout = f"TP{run.config.parallel.tensor} CP{run.config.parallel.context} PP{run.config.parallel.pipeline}"
        print(f"`torchrun --nproc_per_node={world.world_size()} tools/benchmark_encoding.py {' '.join(sys.argv[1:])}`")
        where = f"{machine(run.platform.name, torch.get_num_threads())} a process, {run.config.train.precision}"
        print(f"\nMachine: {where}; {layout}; the same latents, to the bit\n")
        print(table(lines), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"command": sys.argv[1:], "lines": lines}, indent=1), encoding="utf-8")
    torch.distributed.barrier()
    if holder is not None:
        holder.cleanup()
    world.leave_layout()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
