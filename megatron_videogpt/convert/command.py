"""What `convert to-hf` and `convert from-hf` do alike."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.in_use import check_free
from ..errors import UserError


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


@contextmanager
def groups() -> Iterator[None]:
    """A block that may `start` process groups, which end with it; libraries' warnings say nothing to the user there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            started = sys.modules.get("megatron_videogpt.platforms.world")
            if started is not None:
                started.stop()


def start(tensor: int = 1, pipeline: int = 1) -> None:
    """Process groups on the CPU: a conversion moves bytes, whatever device the model is for."""
    from ..platforms import activate

    platform = activate("cpu")
    from ..config.schema import ParallelConfig
    from ..platforms import world

    world.start(platform, ParallelConfig(tensor=tensor, pipeline=pipeline))


def check_verify() -> None:
    """ValueError where `--verify` cannot work here."""
    try:
        from ..hub.next_clip import modeling_videogpt  # noqa: F401
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--verify needs the stand-alone model, which needs transformers: pip install -e '.[hub]' ({reason})"
        ) from error


def compare_predictions(
    checkpoint: Path, config: Any, folder: Path, hint_ids: tuple[int, int, int], channels: int, average: bool
) -> None:
    """`--verify`; ValueError where the two models differ."""
    from . import forward

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


def dtype_of(name: str) -> Any:
    """torch's dtype, None for keep."""
    import torch

    return {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    whole = f"{args.output} was finished before" if os.path.lexists(args.output) else "nothing is left of it"
    return f"{whole}; give the same command again"
