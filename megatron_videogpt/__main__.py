"""`python -m megatron_videogpt train | sample | demo | check | options`, and what `commands` names; the console script
`megatron-videogpt` is the same.

Mistakes of the user end in one line per problem on stderr and exit code 2; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import signals

if __name__ == "__main__":
    signals.remember()

from . import commands, launch  # noqa: E402
from .config import shrink  # noqa: E402
from .config.paths import path  # noqa: E402
from .errors import PeerFailed, Stopped, is_user_error, lines_of, one_line  # noqa: E402

DESCRIPTION = """\
Train, sample and inspect Video-GPT models (next clip diffusion) on megatron-core; prepare their data, convert them.

A run is described by a TOML file; examples are in examples/videogpt/.  A first one:

  bash examples/quickstart.sh                          everything: set-up, training, a predicted video
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt options                  every option, its default and what it does
  python -m megatron_videogpt check examples/videogpt/stage1.toml --gpus 320
  torchrun --nproc_per_node=2 -m megatron_videogpt train examples/videogpt/quickstart.toml train.steps=50
  python -m megatron_videogpt sample --checkpoint runs/quickstart in.mp4 --output out.mp4
  python -m megatron_videogpt scaling fit runs/ladder --hold-out 1
  python -m megatron_videogpt demo --checkpoint runs/quickstart
  python -m megatron_videogpt data prepare videos/ --output shards/
  python -m megatron_videogpt convert to-hf runs/quickstart --output quickstart-hf

COMMAND --help has the options and examples of each.  `megatron-videogpt` is the same program.  train, sample,
data encode, data encode-text and cost run in several processes under torchrun (torchrun ... -m megatron_videogpt).
"""

TRAIN = """\
Train the model that FILE describes.  Start one process per device with torchrun.

A run that was interrupted continues from its newest complete checkpoint: give the same command again.
With --shrink it is tried first, in a minute: the same objective, codec, data and layout, small and for two steps.
"""

TRAIN_EXAMPLES = """\
examples:
  python -m megatron_videogpt train examples/videogpt/quickstart.toml parallel.tensor=1 parallel.sequence=false
  torchrun --nproc_per_node=2 -m megatron_videogpt train examples/videogpt/quickstart.toml train.output=runs/mine \\
      train.steps=100
  torchrun --nproc_per_node=8 -m megatron_videogpt train examples/videogpt/stage1.toml data.source=videos \\
      data.path=/videos parallel.tensor=8
  torchrun --nproc_per_node=2 -m megatron_videogpt train examples/videogpt/stage1.toml data.path=/videos --shrink

Overrides are TOML values (8, 0.5, true, [8, 8]); for options that are text, whatever follows the sign, with or
without TOML's quotes.  In paths ~ and $NAME are expanded, and $$ is a $. `python -m megatron_videogpt options` lists
every option.  It writes into train.output: config.toml, metrics.jsonl, checkpoints, pictures.
"""


OPTIONS = """Print a TOML file with every option, its default and what it does: a file to start from.  Options of an
objective, a codec or a condition are those of its name, for example objective.name=next_block_prediction."""
SAMPLE = "Continue a video with a trained model, clip by clip, and write the result as an mp4 and a contact sheet."


SILENT_RANK_SECONDS = 10.0


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; arguments that need a command's own package are there where `argv` asks for it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m megatron_videogpt", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="on an error show where it came from")
    parts = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = parts.add_parser(
        "train", help="train a model", parents=[common], description=TRAIN, epilog=TRAIN_EXAMPLES, formatter_class=raw
    )
    about = "validate a configuration and estimate its cost"
    check = parts.add_parser("check", help=about, parents=[common], formatter_class=raw)
    for command in (train, check):
        command.add_argument("file", type=path, metavar="FILE.toml", help="the configuration")
        command.add_argument(
            "overrides", metavar="section.option=value", nargs="*", help="options that replace those of the file"
        )
        shrink.add_argument(command)
    from .demo import cli as demo_cli
    from .plan import cli as plan_cli

    plan_cli.add_arguments(check)
    sample = parts.add_parser(
        "sample", help="continue a video with a trained model", parents=[common], description=SAMPLE
    )
    if argv[:1] == ["sample"]:
        from .sample.options import add_arguments

        add_arguments(sample)
    demo = parts.add_parser("demo", help="a web page on this machine that continues clips", parents=[common])
    demo_cli.add_arguments(demo)
    listed = parts.add_parser(
        "options", help="list every option as a TOML file with comments", parents=[common], description=OPTIONS
    )
    listed.add_argument("overrides", metavar="section.option=value", nargs="*", help="values in place of defaults")
    commands.add(parts, common, argv)
    return parser


def run_train(args: argparse.Namespace) -> None:
    """Check first, so that no process group starts for a configuration that cannot run."""
    from .config.check_data import missing_paths, unusable_output
    from .config.load import ConfigError
    from .train.records import Records
    from .train.screen import outlive_full_disk

    processes, rank = launch.world_size(), int(os.environ.get("RANK", "0"))
    outlive_full_disk(records := Records(rank))
    config = shrink.load(args.file, args.overrides, processes, args.shrink, tell=rank == 0)
    launch.check_open_files(config.data.workers)
    problems = missing_paths(config) + unusable_output(config)
    if problems:
        raise ConfigError(problems)
    # Before the imports that take seconds.
    signals.stop_alone()

    from .platforms import activate
    from .train.folder import run_folder
    from .train.logs import start_logs
    from .train.watchdog import Watchdog

    output = Path(config.train.output)
    start_logs(output, rank, records)
    with records, Watchdog(config.train.timeout_minutes, output) as watchdog, run_folder(output, rank):
        # Before anything imports megatron-core, which looks for its device as it is imported.
        activate(config.train.platform, config.train.adaptor)
        from .platforms import world
        from .train.trainer import train

        stopped = None
        try:
            train(config, watchdog.phase, records)
        except Stopped as early:
            stopped = early
        watchdog.phase("leaving the process group")
        world.stop()
    if stopped is not None:
        signals.done()
        raise stopped


def run_check(args: argparse.Namespace) -> None:
    """See `plan.cli`."""
    from .plan.cli import run

    with signals.until_signal():
        run(args)


def run_sample(args: argparse.Namespace) -> int:
    """See `sample.cli`."""
    from .sample.cli import run

    launch.world_size()
    with signals.until_signal():
        return run(args)


def run_demo(args: argparse.Namespace) -> None:
    """See `demo.cli`."""
    from .demo.cli import run

    with signals.until_signal():
        run(args)


def run_options(args: argparse.Namespace) -> None:
    """Defaults and help texts, as a file to start from."""
    from .config.load import config_from_dict, parse_overrides
    from .config.toml import config_to_toml

    with signals.until_signal():
        print(config_to_toml(config_from_dict(parse_overrides(args.overrides))), end="")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": run_train,
    "check": run_check,
    "sample": run_sample,
    "demo": run_demo,
    "options": run_options,
    **dict.fromkeys(commands.names(), commands.run),
}


def print_error(error: BaseException) -> None:
    """One `error:` line per problem.  What every rank raises alike only rank 0 prints; other errors may be one rank's
    own.
    """
    rank = os.environ.get("RANK", "0")
    if getattr(error, "on_every_rank", False) and rank != "0":
        _stay_silent()
    label = "error" if rank == "0" else f"error (rank {rank})"
    for line in lines_of(error):
        print(f"{label}: {line}", file=sys.stderr, flush=True)


def _stay_silent() -> None:
    """Wait until the launcher ends this rank: it stops all ranks as soon as one ends, and the one that speaks must be
    the first.

    Comes back where that does not happen: then nobody has spoken, and this rank must, before the others of its machine.
    """
    if signals.asked() == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        # The handler that remembers it would let this rank go on.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    later = os.environ.get("LOCAL_RANK", "0") != "0"
    time.sleep(SILENT_RANK_SECONDS * (1 + later))


def fail(error: Exception) -> int:
    """Tell of an exception that ended a command: the exit code, or the exception again where its
    traceback is needed.
    """
    error = launch.explained(error)
    if isinstance(error, PeerFailed):
        _stay_silent()
        print_error(error)
        return 1
    if is_user_error(error):
        print_error(error)
        return 2
    if "RANK" in os.environ:
        print(f"error (rank {os.environ['RANK']}): {one_line(error)}", file=sys.stderr, flush=True)
    raise error


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; argparse itself takes no overrides after `--gpus 8`, nor inputs after another option."""
    parser = build_parser(argv)
    args, rest = parser.parse_known_args(shrink.with_factor(argv))
    if "overrides" in args:
        args.overrides += [text for text in rest if "=" in text and not text.startswith("-")]
        rest = [text for text in rest if text not in args.overrides]
    if "inputs" in args:
        # argparse takes the inputs of one place only, but `a.mp4 --clips 8 b.mp4` has two.
        try:
            args.inputs += [path(text) for text in rest if not text.startswith("-")]
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse(argv)
    try:
        launch.settle()
        with signals.remembered():
            return COMMANDS[args.command](args) or 0
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, flush=True)
        return 0
    except signals.Interrupted as stopped:
        return signals.exit_code(stopped, commands.AFTER)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from .train.logs import log_failure

        log_failure(error)
        if args.traceback:
            raise
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
