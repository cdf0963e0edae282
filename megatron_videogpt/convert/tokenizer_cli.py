"""`python -m megatron_videogpt convert tokenizer`: FSQ tokenizers as folders that stand alone, and back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import paths
from ..errors import UserError

if TYPE_CHECKING:
    from ..hub.common.fsq_tokenizer import FSQShape

DESCRIPTION = """\
Convert the published tokenizer of next block prediction to a folder that stands alone, and back, or one that was
trained here to such a folder.

SRC is a published file, the tokenizer's own (.pt) or a transformer's with the tokenizer in it (.ckpt), and becomes a
folder with config.json, model.safetensors and the code that runs them; or it is such a folder and becomes a published
file.  Nothing but tensors is unpickled.  Both ways give the same bits, which is checked by reading them back.

Or SRC is the folder of a run of objective.name="tokenizer", whose tokenizer becomes such a folder.
"""

EPILOG = """
examples:
  python -m megatron_videogpt convert tokenizer tokenizer.pt --output checkpoints/nbp-tokenizer
  python -m megatron_videogpt convert tokenizer checkpoints/nbp-tokenizer --output tokenizer.pt
  python -m megatron_videogpt convert tokenizer runs/nbp/tokenizer_physics --output checkpoints/own-tokenizer

The folder is used in a configuration as codec.name="fsq", codec.path="checkpoints/nbp-tokenizer".  Without this
project, and with the folder on PYTHONPATH (torch and safetensors are all it needs):

  from fsq_tokenizer import FSQTokenizer
  tokenizer = FSQTokenizer.from_pretrained("checkpoints/nbp-tokenizer")
  ids = tokenizer.encode(video)      # float [B, 3, 1 + 4n, H, W] in [0, 1] -> int64 [B, 1 + n, H/8, W/8]
  video = tokenizer.decode(ids)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("source", metavar="SRC", type=paths.path, help="a published file, a folder, or a run")
    parser.add_argument(
        "--output", type=paths.path, required=True, help="the folder, or the file, to make; it must not exist"
    )
    parser.add_argument(
        "--groups",
        type=int,
        default=32,
        help="groups of a norm, which a published file does not say (default: %(default)s)",
    )
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        default=[8, 8, 8, 5, 5, 5],
        help="levels of each channel, which it does not say either (default: 8 8 8 5 5 5, 64,000 codes)",
    )
    parser.add_argument("--step", type=int, help="of a run: which checkpoint (default: the newest)")
    parser.add_argument(
        "--weights", choices=("trained", "average"), help="of a run: which (default: the average where it keeps one)"
    )


def appearing(output: Path, write: Callable[[Path], None]) -> None:
    """What `write` makes takes its name when it is whole; UserError where it cannot."""
    if os.path.lexists(output):
        raise UserError(f"--output {output}: exists already; give a new name, or remove it first")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.resolve().parent} does not exist; make it first")
    partial = output.with_name(output.name + ".partial")
    remove(partial)
    try:
        write(partial)
        os.replace(partial, output)
    except BaseException:
        remove(partial)
        raise


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def convert(args: argparse.Namespace) -> str:
    """The command; the line that says what was done."""
    from .tokenizer import to_folder, to_published

    shapes = []
    if (args.source / "checkpoints").is_dir():
        return from_run(args)
    if args.step is not None or args.weights is not None:
        raise UserError(f"{args.source}: --step and --weights are of a run, and this has no folder checkpoints")
    if args.source.is_dir():
        appearing(args.output, lambda partial: shapes.append(to_published(args.source, partial)))
    else:
        levels = tuple(args.levels)
        appearing(args.output, lambda partial: shapes.append(to_folder(args.source, partial, args.groups, levels)))
    (shape,) = shapes
    return f"{args.output}: {described(shape)}, read back and equal"


def described(shape: FSQShape) -> str:
    """Sizes of a tokenizer."""
    levels = " ".join(map(str, shape.levels))
    return f"width {shape.width}, {shape.units} units, levels {levels} ({shape.codebook_size:,} codes)"


def from_run(args: argparse.Namespace) -> str:
    """Of a run's checkpoint; on the CPU, whatever device it was trained on."""
    from ..platforms import activate

    platform = activate("cpu")
    from ..config.schema import ParallelConfig
    from ..platforms import world
    from .tokenizer_run import run_to_folder

    world.start(platform, ParallelConfig())
    try:
        made: list[tuple[FSQShape, str]] = []
        appearing(
            args.output, lambda partial: made.append(run_to_folder(args.source, partial, args.step, args.weights))
        )
    finally:
        world.stop()
    ((shape, what),) = made
    return f"{args.output}: {described(shape)}, {what}"


def run(args: argparse.Namespace) -> None:
    """Convert; UserError, one line, when that cannot be done."""
    print(convert(args))
