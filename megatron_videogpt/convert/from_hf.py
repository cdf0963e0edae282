"""`python -m megatron_videogpt convert from-hf`: a Hugging Face folder, or a published file, as a run in any layout."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from ..errors import UserError
from ..launch import package_environment
from . import mapped_commands
from .command import (
    after,
    appearing,
    check_output,
    check_verify,
    compare_predictions,
    dtype_of,
    groups,
    progress,
    start,
)
from .options import add_from_hf

__all__ = ["add_arguments", "after", "run"]

add_arguments = add_from_hf


def run(args: argparse.Namespace) -> None:
    """Convert; UserError, one line, when that cannot be done."""
    with groups():
        from_hf(args)


def from_hf(args: argparse.Namespace) -> None:
    """The command; under torchrun one process's share of the checkpoint."""
    worker = "RANK" in os.environ
    if not worker:
        check_output(args.output)
        start()
    else:
        start(args.tensor, args.pipeline)
    from . import ingest, mapped, new_run, settings
    from .folder import Folder

    released = mapped.released_in(args.source)
    if args.start and released is None:
        raise UserError(f"--start {args.start}: {args.source} holds no weights of its kind")
    if released is not None:
        return mapped_commands.from_hf(args, released, dtype_of(args.dtype), progress, appearing, launch)
    folder = Folder(args.source)
    vae = args.vae or (args.source / "vae" if (args.source / "vae" / "config.json").is_file() else None)
    codec = settings.codec_of(vae, args.codec)
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
            launch(args.tensor * args.pipeline, args.words)
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


def launch(processes: int, words: list[str]) -> None:
    """Run this command again in several processes, which write the checkpoint; ValueError when they fail.

    words: what stands behind the command's name.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += ["-m", "megatron_videogpt", "convert", "from-hf", *words]
    environment = {**package_environment(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait()
        except BaseException:
            # Not killed, for then it would leave its processes behind.
            process.terminate()
            raise
    if code:
        raise UserError(
            f"the {processes} processes that write the checkpoint ended with exit code {code}; what they say is above"
        )
