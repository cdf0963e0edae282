"""`python -m megatron_videogpt cost`: what a token and an attended pair cost on this device."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from ...config import paths
from ...config.check import load_checked
from ...config.derived import in_precision, typical_frame
from ...config.schema import Config
from ...errors import UserError

DESCRIPTION = """\
Seconds per token and per attended pair of a configured model on this device: the two numbers of `data.cost`, by which
samples are dealt to ranks.

Times the forward and backward pass of rows with few and many tokens, and with few and many attended pairs for their
tokens (one long sample, or several short ones; one clip, or a clip for each frame), with the trainer's own model,
attention backend and recomputation, on latents of noise.  Then it fits

    seconds = a * tokens + b * pairs + c,      a, b, c >= 0,

by least squares of relative errors.  Paste the line `data.cost=[a, b]` behind your training command.  The constant c
(starting kernels, weights of a small model) is the same for every row, and does not matter for dealing, as all ranks
have equally many rows.  With fewer layers than the model's (--fit, --layers), a and b are scaled to all of them; only
their ratio matters.
"""

EXAMPLES = """\
examples:
  # on one GPU; layers are left out until the rest fits
  python -m megatron_videogpt cost examples/videogpt/stage4.toml --frame 176x320 --fit
  # on a CPU, a minute
  python -m megatron_videogpt cost examples/videogpt/quickstart.toml parallel.tensor=1 parallel.sequence=false \\
      --plot fit.png
  torchrun --nproc_per_node=4 -m megatron_videogpt cost examples/videogpt/stage4.toml parallel.tensor=4 \\
      parallel.sequence=true --frame 176x320
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("config", type=paths.path, help="TOML file of a run")
    parser.add_argument("overrides", nargs="*", help="section.option=value")
    parser.add_argument(
        "--frame", help="HEIGHTxWIDTH of the frames in pixels; default: 16:9 videos as the configuration crops them"
    )
    parser.add_argument("--layers", type=int, default=0, help="decoder layers to measure with; default: all")
    parser.add_argument("--fit", action="store_true", help="leave out layers until the device's memory suffices")
    parser.add_argument("--repeats", type=int, default=3, help="times that each row is measured; the fastest counts")
    parser.add_argument("--plot", type=paths.path, help="also draw measured against fitted seconds into this PNG file")


def frame_of(text: str | None, config: Config) -> tuple[int, int]:
    """Height and width in pixels that `--frame` asks for."""
    if not text:
        return typical_frame(config)
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--frame {text}: expected HEIGHTxWIDTH in pixels, such as 192x320")
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> None:
    """Measure, fit and print; UserError, one line, when that cannot be done."""
    if args.repeats < 1 or args.layers < 0:
        args.parser.error("--repeats must be at least 1, --layers at least 0")
    config = load_checked(args.config, args.overrides, int(os.environ.get("WORLD_SIZE", "1")))
    if config.parallel.pipeline > 1:
        raise UserError(
            f"parallel.pipeline={config.parallel.pipeline}: must be 1 here, stages would wait for each other; "
            "the cost of a stage has the same ratio"
        )
    frame = frame_of(args.frame, config)
    # Read by OpenMP as torch is imported: threads that wait for others must not take their time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ...platforms import activate

    platform = activate(config.train.platform, config.train.adaptor)
    if config.train.precision == "auto":
        config = in_precision(config, "bf16" if platform.bf16 else "fp32")
    import torch

    from . import fit as fits
    from . import timing

    torch.set_num_threads(
        config.train.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    )
    rows = fits.rows_to_time(config.data.frames)
    if len(rows) < 3:
        raise UserError(f"data.frames={config.data.frames}: must be at least 4, rows of different lengths are needed")
    # One sample is a row here, whatever the run packs.
    single = replace(config, data=replace(config.data, pack_tokens=0), train=replace(config.train, micro_batch_size=1))
    layers = args.layers or config.model.num_layers
    chosen = timing.resolved(timing.with_layers(single, layers), platform, frame, args.fit)
    works = fits.work_of_rows(config, rows, frame)
    seconds = timing.measure(chosen, platform, frame, rows, args.repeats)
    fit = fits.fit_cost([tokens for tokens, _ in works], [pairs for _, pairs in works], seconds)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"`python -m megatron_videogpt cost {' '.join(args.words)}`\n")
        print(fits.describe(config, chosen, rows, works, seconds, fit, platform.device_name), flush=True)
        if args.plot:
            fits.plot(args.plot, works, seconds, fit)
    torch.distributed.destroy_process_group()
