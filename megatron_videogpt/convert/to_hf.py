"""`python -m megatron_videogpt convert to-hf`: a run's checkpoint, of any layout, as a Hugging Face folder."""

from __future__ import annotations

import argparse

from ..errors import UserError
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
from .mapped_commands import PUBLISHED
from .options import add_to_hf
from .push import pushed

__all__ = ["add_arguments", "after", "run"]

add_arguments = add_to_hf


def run(args: argparse.Namespace) -> None:
    """Convert; UserError, one line, when that cannot be done."""
    with groups():
        to_hf(args)


def to_hf(args: argparse.Namespace) -> None:
    """The command."""
    check_output(args.output)
    if args.push and args.output.suffix in PUBLISHED:
        raise UserError(f"--push {args.push}: a folder goes to the Hub, and --output {args.output} is to be a file")
    with pushed(args.output, args.push, private=not args.public):
        write_hf(args)


def write_hf(args: argparse.Namespace) -> None:
    """The folder, or file, of `to-hf`."""
    start()
    from ..checkpoint.saved import find_checkpoint
    from ..objective.build import released_of

    released = released_of(find_checkpoint(args.source, args.step).config)
    if released is not None:
        return mapped_commands.to_hf(args, released, dtype_of(args.dtype), progress, appearing)
    from .export import Export
    from .settings import codec_of
    from .write import write_folder

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
