#!/usr/bin/env python3
"""Convert between a training run's checkpoints and Hugging Face folders in the layout of the released Video-GPT, or of
another objective's published networks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megatron_videogpt import signals  # noqa: E402

if __name__ == "__main__":
    # What the commands import takes seconds.
    signals.remember()

from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.train.folder import check_free  # noqa: E402
from tools import convert_mapped  # noqa: E402
from tools.convert_options import arguments  # noqa: E402


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
        # What was to become a file.
        partial.unlink(missing_ok=True)
        raise


def check_output(output: Path) -> None:
    """ValueError where the output cannot be made."""
    check_free(output)
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
    from megatron_videogpt.convert.push import pushed

    check_output(args.output)
    if args.push and args.output.suffix in convert_mapped.PUBLISHED:
        raise UserError(f"--push {args.push}: a folder goes to the Hub, and --output {args.output} is to be a file")
    with pushed(args.output, args.push, private=not args.public):
        write_hf(args)


def write_hf(args: argparse.Namespace) -> None:
    """The folder, or file, of `to-hf`."""
    start()
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.objective.build import released_of

    released = released_of(find_checkpoint(args.source, args.step).config)
    if released is not None:
        return convert_mapped.to_hf(args, released, dtype_of(args.dtype), progress, appearing)
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
    from megatron_videogpt.convert import ingest, mapped, new_run, settings
    from megatron_videogpt.convert.folder import Folder

    released = mapped.released_in(args.source)
    if args.start and released is None:
        raise UserError(f"--start {args.start}: {args.source} holds no weights of its kind")
    if released is not None:
        return convert_mapped.from_hf(args, released, dtype_of(args.dtype), progress, appearing, launch)
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


def main() -> int:
    """Entry point."""
    args = arguments()
    warnings.filterwarnings("ignore")
    try:
        with signals.until_signal():
            to_hf(args) if args.command == "to-hf" else from_hf(args)
    except signals.Interrupted as stopped:
        whole = f"{args.output} was finished before" if os.path.lexists(args.output) else "nothing is left of it"
        return signals.exit_code(stopped, f"{whole}; give the same command again")
    except (UserError, OSError) as error:
        return exit_code(error)
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
