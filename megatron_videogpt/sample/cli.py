"""`python -m megatron_videogpt sample`: continue videos, and show beside them what really happened where the input
knows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config.paths import obstacle
from ..data.sources.files import EXTENSIONS
from ..errors import UserError
from .generate import Model, load
from .job import Job, alike, describe_means, is_first
from .options import FORMATS, resolve
from .output import REPORT, output_path
from .pictures import IMAGES
from .prompts import Source, check_readable, find_sources


def run(args: argparse.Namespace) -> int:
    """Continue all inputs and write their files; the exit code, 1 where some input could not be used.

    Raises ValueError in one line for whatever else the user can mend.
    """
    with alike():
        sources, bases = _check_command(args)
    model = load(
        args.checkpoint, args.step, args.weights == "average", args.text_encoder, bool(args.texts), args.platform
    )
    with alike():
        settings, interval = resolve(args, model.config)
        check_shown(args.labels, args.texts, model)
    lpips = _find_lpips() if args.compare else None
    job = Job(args, model, settings, interval, len(sources))
    results: dict[str, dict[str, Any]] = {}
    with job.progress:
        for row in job.rows(sources):
            results.update(job.sample(row, bases, lpips))
    if args.compare and is_first():
        _write_comparison(results, *_metrics(args.output))
    if job.skipped and is_first():
        print(
            f"{len(sources) - job.skipped} of {len(sources)} inputs continued, {job.skipped} skipped (named above)",
            file=sys.stderr,
        )
    return 1 if job.skipped else 0


def _is_file(output: Path) -> bool:
    return output.suffix.lower() == ".mp4"


def _check_command(args: argparse.Namespace) -> tuple[list[Source], dict[str, Path]]:
    """What can be told before anything slow starts: the inputs, and by their names where the files of each go, without
    endings.
    """
    output: Path = args.output
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: must be at least 1")
    if output.suffix.lower() in (EXTENSIONS | IMAGES) - {".mp4"}:
        raise UserError(
            f"--output {output}: must end in .mp4 or be a folder; --formats {','.join(FORMATS)} chooses what is written"
        )
    if output.exists() and output.is_dir() == _is_file(output):
        raise UserError(
            f"--output {output}: is a {'folder; expected an mp4' if _is_file(output) else 'file; expected a folder'}"
        )
    if why := obstacle(output.parent if _is_file(output) else output):
        raise UserError(f"--output {output}: {why}")
    paths, texts = [*args.inputs, *args.video], list(lines_of(args.texts))
    args.texts = texts
    if not (paths or args.scene or args.labels or texts):
        raise UserError(
            "nothing to continue: give a video, an image, a folder of them, or --scene bounce/3; or, for a model that "
            "takes one, --class or --text"
        )
    if args.labels and texts:
        raise UserError("--class and --text: a model takes one of the two")
    if (paths or args.scene) and len(args.labels) + len(texts) > 1:
        raise UserError(f"{len(args.labels) + len(texts)} classes or texts: all inputs share one; give one of them")
    sources = find_sources(paths, args.scene, output, args.labels, texts)
    if len(sources) > 1 and _is_file(output):
        raise UserError(f"--output {output}: must be a folder for {len(sources)} inputs")
    if len(sources) == 1 and sources[0].path is not None:
        # A single input that cannot be read is told before the model is loaded.
        check_readable(sources[0].path)
    bases = {source.name: output.with_suffix("") if _is_file(output) else output / source.name for source in sources}
    written = [
        output_path(base, ending)
        for base in bases.values()
        for ending in (*(FORMATS[name] for name in args.formats), REPORT)
    ]
    written += _metrics(output) if args.compare else ()
    read = {source.path.resolve() for source in sources if source.path is not None}
    for path in written:
        if path.resolve() in read:
            raise UserError(f"--output {output}: would overwrite the input {path}; use another name or folder")
    return sources, bases


def lines_of(texts: Sequence[str]) -> Iterator[str]:
    """Texts as given, and for the names of files (``.txt``) their lines that are not blank.

    Raises UserError, one line, for a text or a file without any word, or one that cannot be read.
    """
    for text in texts:
        if not text.lower().endswith(".txt"):
            lines = [text]
        else:
            try:
                lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--text {text}: cannot be read as a text file ({error})") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"--text {text!r}: has no word in it; say what the video is to show")
        yield from found


def check_shown(labels: Sequence[str], texts: Sequence[str], model: Model) -> None:
    """UserError, one line, for what this model does not take."""
    kind = model.config.condition.kind
    for option, given, wanted in (("--class", labels, "class"), ("--text", texts, "text")):
        if given and kind != wanted:
            use = {"class": "use --class", "text": "use --text"}.get(kind, f"leave {option} out")
            raise UserError(f"{option}: the model was trained with condition.kind = {kind}; {use}")
    for label in labels:
        model.conditioning.number(label)


def _metrics(output: Path) -> tuple[Path, Path]:
    """Where a comparison goes, and its plot."""
    base = output.with_name(f"{output.stem}.metrics") if _is_file(output) else output / "metrics"
    return output_path(base, ".json"), output_path(base, ".png")


def _find_lpips() -> Callable | None:
    from .compare import find_lpips

    lpips, why = find_lpips()
    if why and is_first():
        print(why)
    return lpips


def _write_comparison(results: dict[str, dict[str, Any]], facts: Path, picture: Path) -> None:
    """Metrics and their plot beside the videos, and the mean over all prompts on the terminal; nothing where no prompt
    had a truth.
    """
    if not results:
        print("no metrics: none of the inputs has a true continuation")
        return
    from .compare import plot

    values = {
        name: [result["mean"][name] for result in results.values() if result["mean"][name] is not None]
        for name in ("psnr", "ssim", "lpips")
    }
    mean = {name: sum(known) / len(known) if known else None for name, known in values.items()}
    facts.write_text(json.dumps({"prompts": results, "mean": mean}, indent=2) + "\n", encoding="utf-8")
    plot(results, picture)
    print(f"mean of {len(results)} prompts: {describe_means(mean)}\nwrote {facts}, {picture}")
