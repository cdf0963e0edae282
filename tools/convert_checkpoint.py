#!/usr/bin/env python3
"""Convert between a training run's checkpoints and Hugging Face folders in the layout of the released Video-GPT."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megatron_videogpt.errors import UserError, exit_code

DESCRIPTION = """\
to-hf     a run's checkpoint, of any layout -> a Hugging Face folder that transformers and diffusers open without this
          package
from-hf   such a folder, the released Video-GPT, or a stock Phi-3-mini (its backbone; the video parts start afresh) -> a
          run in the layout you ask for

Nothing gets lost on the way: tensors that the model has no use for, dtypes, tokenizer and VAE travel along
(docs/checkpoints.md).  Everything is read one tensor at a time, compared after it is written, and appears under its
name only when it is complete.
"""

TO_EXAMPLES = """\
examples:
  python tools/convert_checkpoint.py to-hf runs/videogpt/stage4 --output videogpt-hf  # the newest checkpoint
  python tools/convert_checkpoint.py to-hf runs/videogpt/stage4 --output ema-hf --weights average --dtype bf16
  python tools/convert_checkpoint.py to-hf runs/videogpt/stage4 --output videogpt-hf --step 90000 --vae ../sdxl-vae \\
      --license mit --verify
"""

FROM_EXAMPLES = """\
examples:
  python tools/convert_checkpoint.py from-hf Video-GPT --output runs/released --verify
  # written by four processes:
  python tools/convert_checkpoint.py from-hf Video-GPT --output runs/released --tensor 2 --pipeline 2
  # a backbone to start training from:
  python tools/convert_checkpoint.py from-hf Phi-3-mini-4k-instruct --output runs/phi3 --vae ../sdxl-vae

Sample from the run, or train from it:
  python -m megatron_videogpt train FILE.toml train.init_from=runs/released train.output=runs/mine
"""


def size(text: str) -> int:
    """``5GB`` -> bytes, in powers of ten."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 5GB or 500MB")
    return int(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2].upper()])


def ids(text: str) -> tuple[int, ...]:
    """``a,b,c`` -> three numbers."""
    if not re.fullmatch(r"\d{1,9},\d{1,9},\d{1,9}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected the ids of <|diffusion|>, <img> and </img>, such as 32011,32012,32013"
        )
    return tuple(map(int, text.split(",")))


def licence(text: str) -> str:
    """A name that fits into the model card's front matter."""
    if not re.fullmatch(r"[A-Za-z0-9.+-]{1,40}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a licence's identifier on the Hub, such as mit or apache-2.0"
        )
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="to-hf|from-hf")
    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    out = commands.add_parser("to-hf", help="a run's checkpoint -> a Hugging Face folder", epilog=TO_EXAMPLES, **raw)
    out.add_argument("source", type=Path, metavar="RUN", help="folder of a training run (its train.output)")
    out.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    out.add_argument(
        "--weights",
        choices=("trained", "average"),
        default="trained",
        help="the weights, or their moving average (optimizer.ema_decay)",
    )
    out.add_argument(
        "--max-shard-size",
        type=size,
        default=size("5GB"),
        metavar="SIZE",
        help="largest file of weights, beyond which there are several (5GB)",
    )
    out.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="tokenizer files to put into the folder, instead of those the run came with",
    )
    out.add_argument(
        "--license",
        type=licence,
        metavar="NAME",
        help="of the model card, such as mit (default: that of the folder the run came from, or unknown)",
    )
    back = commands.add_parser("from-hf", help="a Hugging Face folder -> a run", epilog=FROM_EXAMPLES, **raw)
    back.add_argument("source", type=Path, metavar="FOLDER", help="folder with config.json and safetensors")
    back.add_argument(
        "--tensor",
        type=positive,
        default=1,
        metavar="N",
        help="tensor parallel size of the checkpoint (1); any layout can load it",
    )
    back.add_argument(
        "--pipeline",
        type=positive,
        default=1,
        metavar="N",
        help="pipeline parallel size (1); processes are started as needed",
    )
    back.add_argument(
        "--hint-ids",
        type=ids,
        metavar="A,B,C",
        help="rows of <|diffusion|>, <img>, </img> in the text table, where no tokenizer names them",
    )
    back.add_argument(
        "--codec",
        default="",
        choices=("tiny", "autoencoder_kl", "autoencoder_kl_wan"),
        help="codec of the model, where there is no VAE folder",
    )
    back.add_argument(
        "--allow-extra", action="store_true", help="carry tensors along that neither the model nor this format knows"
    )
    for command, folder in ((out, "Hugging Face folder"), (back, "run")):
        command.add_argument(
            "--output", type=Path, required=True, metavar="FOLDER", help=f"the {folder} to make; it must not exist"
        )
        command.add_argument(
            "--dtype",
            choices=("keep", "bf16", "fp32"),
            default="keep",
            help="of the tensors (default: what each one has)",
        )
        command.add_argument(
            "--vae",
            type=Path,
            metavar="FOLDER",
            help="diffusers VAE (config.json and safetensors), instead of the one that travels along",
        )
        command.add_argument(
            "--verify", action="store_true", help="compare predictions of both models on random input, too"
        )
    args = parser.parse_args()
    for name in ("vae", "tokenizer"):
        folder = getattr(args, name, None)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: no such folder")
    return args


@contextmanager
def progress(what: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar in bytes; inside, call what it gives with how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, and is gone when it does not."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if not os.access(partial.resolve().parent, os.W_OK):
        raise UserError(f"--output {output}: the folder {partial.resolve().parent} cannot be written")
    try:
        yield partial
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_output(output: Path) -> None:
    """ValueError where the output cannot be made."""
    if os.path.lexists(output):
        raise UserError(f"--output {output}: exists already; give a new name, or remove it first")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.resolve().parent} does not exist; make it first")


def start(tensor: int = 1, pipeline: int = 1) -> None:
    """Process groups on the CPU: a conversion moves bytes, whatever device the model is for."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.platforms import world

    world.start(platform, ParallelConfig(tensor=tensor, pipeline=pipeline))


def stop() -> None:
    """Leave the process groups, if it came to that."""
    started = sys.modules.get("megatron_videogpt.platforms.world")
    if started is not None:
        started.stop()


def check_verify() -> None:
    """ValueError where `--verify` cannot work here."""
    try:
        import megatron_videogpt.hub.next_clip.modeling_videogpt  # noqa: F401
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--verify needs the stand-alone model, which needs transformers: pip install -e '.[hub]' ({reason})"
        ) from error


def compare_predictions(
    checkpoint: Path, config: Any, folder: Path, hint_ids: tuple[int, int, int], channels: int, average: bool
) -> None:
    """`--verify`; ValueError where the two models differ."""
    from megatron_videogpt.convert import forward

    error = forward.relative_error(
        forward.of_run(checkpoint, config, channels, average), forward.of_folder(folder, hint_ids)
    )
    limit = forward.LIMIT
    if not error <= limit:
        raise UserError(
            f"--verify: the predictions of the two models differ by {error:.2g} of the largest value, limit "
            f"{limit:g}; please report this"
        )
    print(
        f"verified: predictions of both models on random input agree to {error:.2g} of the largest value "
        f"(limit {limit:g})"
    )


def to_hf(args: argparse.Namespace) -> None:
    """The command."""
    check_output(args.output)
    start()
    from megatron_videogpt.convert.export import Export
    from megatron_videogpt.convert.settings import codec_of
    from megatron_videogpt.convert.write import write_folder

    if args.vae is not None:
        codec_of(args.vae)
    if args.verify:
        check_verify()
    export = Export(args.source, args.step, args.weights == "average", dtype_of(args.dtype))
    entries = export.entries()
    total = sum(entry.size for entry in entries)
    with appearing(args.output) as partial:
        with progress(f"{export.path.name} to {args.output.name}", 2 * total) as advance:
            files = write_folder(export, partial, args.max_shard_size, args.vae, args.tokenizer, args.license, advance)
        if args.verify:
            compare_predictions(
                export.path, export.config, partial, export.hint_ids, export.weights.channels, export.average
            )
        has_vae = (partial / "vae").is_dir()
    print(f"{len(entries)} tensors, {total / 1e9:.3f} GB in {len(files)} files, read back and equal: {args.output}")
    if not has_vae:
        print("no VAE: frames need one; add it with --vae FOLDER when you convert, or hand one to the pipeline")
    print(
        f'next: AutoModel.from_pretrained("{args.output}", trust_remote_code=True), or fill in the model card '
        f"{args.output}/README.md"
    )


def dtype_of(name: str) -> Any:
    """torch's dtype, None for keep."""
    import torch

    return {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def from_hf(args: argparse.Namespace) -> None:
    """The command; under torchrun one process's share of the checkpoint."""
    worker = "RANK" in os.environ
    if not worker:
        check_output(args.output)
        start()
    else:
        start(args.tensor, args.pipeline)
    from megatron_videogpt.convert import ingest, new_run
    from megatron_videogpt.convert.folder import Folder

    folder = Folder(args.source)
    vae = args.vae or (args.source / "vae" if (args.source / "vae" / "config.json").is_file() else None)
    codec = ingest.codec_of(vae, args.codec)
    source = ingest.open_source(folder, codec, args.hint_ids, dtype_of(args.dtype), args.allow_extra)
    config = new_run.run_config(source, codec, args.output, args.tensor, args.pipeline)
    if args.verify and source.stock:
        raise UserError("--verify: a stock Phi-3 folder has no video model to compare with; leave it out")
    if args.verify:
        check_verify()
    partial = args.output.with_name(args.output.name + ".partial")
    weights, side = source.bytes()
    title = f"{args.source.name} to {args.output.name}"
    if worker:
        with progress(title, weights // args.pipeline, shown=os.environ["RANK"] == "0") as advance:
            new_run.write_checkpoint(source, config, new_run.checkpoint_of(partial), advance)
        return
    alone = args.tensor * args.pipeline == 1
    with appearing(args.output) as partial:
        new_run.checkpoint_of(partial).mkdir(parents=True)
        if not alone:
            launch(args.tensor * args.pipeline)
        with progress(title if alone else "reading back", weights * (1 + alone) + 2 * side) as advance:
            if alone:
                new_run.write_checkpoint(source, config, new_run.checkpoint_of(partial), advance)
            new_run.finish(source, config, partial, args.vae, advance)
        if args.verify:
            compare_predictions(
                new_run.checkpoint_of(partial), config, args.source, source.hint_ids, source.channels, False
            )
    layout = f"TP{args.tensor} x PP{args.pipeline}, {config.train.precision}"
    print(
        f"{len(source.dtypes())} tensors, {(weights + side) / 1e9:.3f} GB as {layout}, read back and equal: "
        f"{args.output}"
    )
    if source.stock:
        print(
            "the backbone is Phi-3's; the video parts and hint tokens (rows "
            f"{', '.join(map(str, source.hint_ids))}) are fresh and need training"
        )
    if not (codec.name == "tiny" or codec.path):
        print(
            f"no VAE: set codec.name and codec.path in {args.output}/checkpoints/step_00000000/config.toml to "
            "sample, or convert again with --vae FOLDER"
        )
    print(f"next: python -m megatron_videogpt train FILE.toml train.init_from={args.output} train.output=ANOTHER")


def launch(processes: int) -> None:
    """Run this command again in several processes, which write the checkpoint; ValueError when they fail."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
        os.path.abspath(__file__),
        *sys.argv[1:],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise UserError(
            f"the {processes} processes that write the checkpoint ended with exit code {code}; what they say is above"
        )


def main() -> int:
    """Entry point."""
    args = arguments()
    warnings.filterwarnings("ignore")
    try:
        to_hf(args) if args.command == "to-hf" else from_hf(args)
    except (UserError, OSError) as error:
        return exit_code(error)
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
