"""`python -m megatron_videogpt convert verify`: a folder with the released Video-GPT weights against everything that
this package assumes about them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from ...config import paths
from ...errors import is_user_error, one_line
from .checks import (
    Task,
    check_folder,
    check_hints,
    check_round_trip,
    check_stages,
    check_tensors,
)
from .predictions import check_predictions

STAGES = Path(__file__).resolve().parents[3] / "examples" / "videogpt"
"""Of a checkout; an installed package has no examples beside it."""

DESCRIPTION = """\
For someone who has the released Video-GPT weights (config.json, *.safetensors, tokenizer, vae/): is all that this
package assumes about them true?

  folder        opens without a pickle and without anything broken in it
  tensors       every key and shape of the format, and the number of parameters
  hint tokens   the ids of <|diffusion|>, <img> and </img> in its tokenizer, and their rows in the text table
  stages        its config.json against the model that stage1.toml to stage4.toml (--stages) train: sizes, rotary
                factors, position table
  round trip    to a megatron-core checkpoint and back with convert from-hf and to-hf: every tensor bit-equal, every
                field and file still there
  predictions   three continuations, of your videos or of physics scenes, as mp4 and png to look at

Each prints PASS or FAIL with numbers; a Markdown report lies in the output folder afterwards.  Please send it to the
project, passed or failed: its README says whether anybody has run this on the real weights.
"""

EPILOG = """
At the released size the round trip needs 16 GB of disk; for the predictions the weights alone take 8 GB of a GPU's
memory (bf16), or 15 GB of the host's (float32).  --history, --clips and --steps make predictions shorter. Exit status:
0 when nothing failed, 1 when something did, 2 for a wrong command line.

examples:
  python -m megatron_videogpt convert verify Video-GPT --videos a.mp4 b.mp4 c.mp4
  python -m megatron_videogpt convert verify Video-GPT --vae sdxl-vae --history 8 --clips 8 --steps 10  # quick
  python -m megatron_videogpt convert verify Video-GPT --skip predictions  # everything that needs no GPU
"""

Check = Callable[[Task], list[str]]
Results = dict[str, tuple[str, list[str]]]
"""Name -> PASS, FAIL or SKIP, and lines on it."""

CHECKS: tuple[tuple[str, tuple[str, ...], Check], ...] = (
    ("folder", (), check_folder),
    ("tensors", ("folder",), check_tensors),
    ("hint tokens", ("folder",), check_hints),
    ("stages", ("folder",), check_stages),
    ("round trip", ("tensors", "hint tokens"), check_round_trip),
    ("predictions", ("tensors", "hint tokens"), check_predictions),
)


def run_check(name: str, needs: tuple[str, ...], check: Check, task: Task, results: Results) -> None:
    """One check, printed and noted; one whose needs did not pass cannot run."""
    failed = [need for need in needs if results[need][0] != "PASS"]
    if name in task.args.skip:
        status, lines = "SKIP", ["left out by --skip"]
    elif failed:
        status, lines = "SKIP", [f"cannot run before {' and '.join(failed)}"]
    else:
        print(f"checking: {name}", file=sys.stderr, flush=True)
        try:
            status, lines = "PASS", check(task)
        except Exception as error:  # noqa: BLE001  (the other checks go on)
            status, lines = "FAIL", [one_line(error)]
            if not is_user_error(error):
                traceback.print_exc()
    results[name] = status, lines
    print(f"{status}  {name}: {lines[0]}", *(f"      {line}" for line in lines[1:]), sep="\n", flush=True)


def report(args: argparse.Namespace, results: Results) -> str:
    """The Markdown report."""
    torch, ours = (f"{name} {metadata.version(name)}" for name in ("torch", "megatron_videogpt"))
    versions = f"Python {sys.version.split()[0]}, {torch}, {ours}"
    lines = [
        "# Check of released weights",
        "",
        f"`{args.folder}`, {versions}",
        "",
        "| check | result | |",
        "|---|---|---|",
    ]
    for name, (status, found) in results.items():
        lines.append(f"| {name} | {status} | {'<br>'.join(line.replace('|', chr(92) + '|') for line in found)} |")
    return "\n".join(lines) + "\n"


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "folder", type=paths.path, help="folder with config.json, *.safetensors, tokenizer files and vae/"
    )
    parser.add_argument(
        "--videos",
        type=paths.path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="continue these (three, say) instead of physics scenes",
    )
    parser.add_argument("--vae", type=paths.path, metavar="FOLDER", help="diffusers VAE, where the folder has no vae/")
    parser.add_argument(
        "--stages",
        type=paths.path,
        default=STAGES,
        metavar="FOLDER",
        help="with stage*.toml (default: examples/videogpt of the project, where the package runs from a copy of it)",
    )
    parser.add_argument(
        "--output",
        type=paths.path,
        default=Path("verify_release"),
        metavar="FOLDER",
        help="for report and predictions (default: verify_release)",
    )
    parser.add_argument(
        "--history",
        type=positive,
        metavar="N",
        help="frames given to the predictions (default: as the last stage has it)",
    )
    parser.add_argument("--clips", type=positive, nargs="+", metavar="N", help="frames of each predicted clip")
    parser.add_argument("--steps", type=positive, metavar="N", help="denoising steps: fewer are faster and coarser")
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        choices=[name for name, *_ in CHECKS],
        metavar="CHECK",
        help="leave out, such as 'round trip' or predictions",
    )


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The command line, or an exit with 2 and its usage."""
    parser = args.parser
    for path in [args.folder, *([args.vae] if args.vae else [])]:
        if not path.is_dir():
            parser.error(f"{path}: no such folder")
    if not args.stages.is_dir():
        what = "give --stages, the folder examples/videogpt of the project" if args.stages == STAGES else "--stages"
        parser.error(f"{what}: {args.stages}: no such folder")
    for path in args.videos:
        if not path.is_file():
            parser.error(f"--videos {path}: no such file")
    if args.vae and "round trip" in args.skip and "predictions" not in args.skip:
        parser.error("--vae goes into the run that the round trip makes: leave 'round trip' out of --skip")
    args.clips = tuple(args.clips) if args.clips else None
    return args


def run(args: argparse.Namespace) -> int:
    """Run the checks and write the report; the exit status."""
    args = checked(args)
    # Before anything imports megatron-core, which looks for its device as it is imported.
    from ...platforms import activate

    activate("auto")
    results: Results = {}
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="round-trip-", dir=args.output) as work:
        for name, needs, check in CHECKS:
            # A VAE from elsewhere comes into the run that the round trip makes.
            wanted = (*needs, "round trip") if name == "predictions" and args.vae else needs
            run_check(name, wanted, check, Task(args, Path(work)), results)
    (args.output / "report.md").write_text(report(args, results), encoding="utf-8")
    statuses = [status for status, _ in results.values()]
    print(
        f"{statuses.count('PASS')} passed, {statuses.count('FAIL')} failed, {statuses.count('SKIP')} not run; "
        f"report: {args.output / 'report.md'}"
    )
    return 1 if "FAIL" in statuses else 0
