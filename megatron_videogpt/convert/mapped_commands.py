"""`convert to-hf` and `convert from-hf` for objectives whose package says which published tensors are which
parameter.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError

PUBLISHED = (".ckpt", ".pt", ".pth")
"""Endings of a published file of PyTorch, which `to-hf` writes instead of a folder."""


def told(values: list[str]) -> dict[str, str]:
    """``name=value`` of `--published`."""
    pairs = [value.partition("=") for value in values]
    wrong = next((value for value, (_, equals, _) in zip(values, pairs) if not equals), None)
    if wrong is not None:
        raise UserError(f"--published {wrong}: expected name=value, such as block=16")
    return {name: value for name, _, value in pairs}


def to_hf(args: argparse.Namespace, released: Any, dtype: Any, progress: Callable[..., Any], appearing: Any) -> None:
    """A run's checkpoint as a folder, or a published file."""
    from .mapped_export import MappedExport, write_folder, write_published

    export = MappedExport(args.source, released, args.step, args.weights == "average", dtype)
    if args.verify or args.tokenizer:
        raise UserError(f"--{'verify' if args.verify else 'tokenizer'}: not for a model of {released.MODEL_TYPE}")
    file = args.output.suffix in PUBLISHED
    alone = file and released.CODEC == "vae"
    if alone and args.vae is not None:
        raise UserError(f"--vae {args.vae}: a published file of {released.MODEL_TYPE} has none in it; leave it out")
    codec, entries = None if alone else export.codec(args.vae), export.entries()
    total = sum(entry.size for entry in entries)
    with appearing(args.output) as partial, progress(f"{export.path.name} to {args.output.name}", 2 * total) as bar:
        if file:
            files = write_published(export, partial, codec, bar)
        else:
            files = write_folder(export, partial, args.max_shard_size, codec, args.license, bar)
    print(f"{len(entries)} tensors, {total / 1e9:.3f} GB in {len(files)} files, read back and equal: {args.output}")
    if codec is None and not alone:
        print(f"no {released.CODEC}: frames need one; add its folder with --vae FOLDER when you convert")
    condition = export.config.condition
    if condition.kind == "text" and condition.encoder != "ids":
        print(f"no text encoder in it: texts are given as features of {condition.encoder}, as the run was trained with")
    elif condition.kind == "text" and export.text_tokenizer is None and not file:
        print(
            "no text tokenizer: the run knows none, or another; put its tokenizer.json into text_tokenizer/ for texts"
        )
    if not file:
        print(f'next: AutoModel.from_pretrained("{args.output}", trust_remote_code=True), or fill in the model card')


def from_hf(
    args: argparse.Namespace,
    released: Any,
    dtype: Any,
    progress: Callable[..., Any],
    appearing: Any,
    launch: Callable[[int, list[str]], None],
) -> None:
    """A folder or a published file as a run; under torchrun one process's share of the checkpoint."""
    from . import mapped, mapped_codec, mapped_run, new_run

    unused = {"verify": args.verify, "hint-ids": args.hint_ids, "codec": args.codec and released.CODEC != "vae"}
    for name in (name for name, value in unused.items() if value):
        raise UserError(f"--{name}: not for a model of {released.MODEL_TYPE}")
    partial = args.output.with_name(args.output.name + ".partial")
    place = mapped_codec.place_of(partial, released)

    def opened() -> tuple[Any, Any]:
        said = told(args.published), dtype, args.allow_extra, args.start, args.codec
        source = mapped.open_source(args.source, released, place, *said)
        return source, mapped_run.run_config(source, args.output, args.tensor, args.pipeline)

    if "RANK" in os.environ:
        source, config = opened()
        with progress(args.output.name, source.bytes()[0] // args.pipeline, shown=os.environ["RANK"] == "0") as bar:
            new_run.write_checkpoint(source, config, new_run.checkpoint_of(partial), bar)
        return
    alone = args.tensor * args.pipeline == 1
    with appearing(args.output) as partial:
        new_run.checkpoint_of(partial).mkdir(parents=True)
        mapped_codec.bring(released, args.source, args.vae, place, tuple(args.levels), args.groups)
        source, config = opened()
        weights, side = source.bytes()
        if not alone:
            launch(args.tensor * args.pipeline, args.words)
        with progress(f"{args.source.name} to {args.output.name}", weights * (1 + alone) + 2 * side) as bar:
            if alone:
                new_run.write_checkpoint(source, config, new_run.checkpoint_of(partial), bar)
            mapped_run.finish(source, config, partial, bar)
    print(
        f"{len(source.dtypes())} tensors, {(weights + side) / 1e9:.3f} GB as TP{args.tensor} x PP{args.pipeline}, "
        f"{config.train.precision}, read back and equal: {args.output}"
    )
    for line in notes(source, args.output):
        print(line)
    print(f"next: python -m megatron_videogpt train FILE.toml train.init_from={args.output} train.output=ANOTHER")


def notes(source: Any, output: Path) -> list[str]:
    """What a user has to know of a run: what was taken for granted, what starts afresh or was left out, and what is
    missing.
    """
    found = []
    if source.start:
        start = source.released.STARTS[source.start]
        afresh, left = _counted(source.fresh, start.fresh), _counted(source.dropped, start.dropped)
        own = sum(len(source.keys(entry)) for entry in source.entries) - len(source.fresh)
        found.append(f"a start from {source.start}: {own} tensors are its own; afresh: {afresh}; left out: {left}")
    if not source.origin.path.is_dir() or source.start:
        shown = ", ".join(f"{name}={value}" for name, value in source.settings.items() if name != "model_type")
        found.append(f"taken for: {shown}; say otherwise with --published NAME=VALUE")
    if not (source.config.codec.path or source.config.codec.name == "tiny"):
        folder = source.released.CODEC
        found.append(f"no {folder}: set codec.path in {output}/config.toml, or convert again with --vae FOLDER")
    return found


def _counted(keys: Any, parts: tuple[str, ...]) -> str:
    """How many keys are which, or have which part (one that ends with a dot)."""
    counts = {part: sum(key == part or part.endswith(".") and part in key for key in keys) for part in parts}
    return ", ".join(f"{part.rstrip('.')} ({count})" for part, count in counts.items() if count) or "nothing"
