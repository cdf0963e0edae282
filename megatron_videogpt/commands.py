"""Commands that have a module of their own: data, converting, codecs, scaling laws, what a row costs, where a run is.

`__main__` adds them to its parser and runs them.  A module has `add_arguments(parser)` and `run(args)`, which returns
the exit code or None for 0; where `after(args)` is there too, it says what to do after a signal.  Beside the options
`args` has `parser`, the command's own, and `words`, what stood behind its name.  Modules are imported only for the
command that was asked for.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from . import signals
from .errors import UserError

AFTER = "what is finished stays; give the same command again"
"""What to do after a signal, where a command does not say it."""

Words = tuple[str, ...]
"""Words of a command, such as ("data", "prepare")."""


@dataclass(frozen=True)
class Command:
    """module: within this package; about: a line of help; shared: torchrun may start several processes of it, which
    share out its work.
    """

    module: str
    about: str
    shared: bool = False


GROUPS: dict[Words, str] = {
    ("data",): "make data sets: videos to shards, shards to latents, captions to text features",
    ("convert",): "Hugging Face folders and published files, both ways, and their check",
    ("codec",): "train a small codec, or measure what one keeps of your videos",
    ("codec", "train"): "train a small codec: the tiny one, or an FSQ tokenizer",
    ("scaling",): "what smaller runs say about larger ones",
}

COMMANDS: dict[Words, Command] = {
    ("data", "prepare"): Command("data.prepare.cli", "put videos into shards, which training reads in any order"),
    ("data", "frames"): Command("data.prepare.frames", "make a video of every folder of pictures"),
    ("data", "encode"): Command("data.prepare.encode_cli", "encode every frame with a VAE, once", shared=True),
    ("data", "encode-text"): Command("data.prepare.texts_cli", "encode captions, once", shared=True),
    ("convert", "to-hf"): Command("convert.to_hf", "a run's checkpoint -> a Hugging Face folder"),
    ("convert", "from-hf"): Command("convert.from_hf", "a Hugging Face folder or a published file -> a run"),
    ("convert", "tokenizer"): Command("convert.tokenizer_cli", "a published or trained FSQ tokenizer <-> a folder"),
    ("convert", "verify"): Command("evaluate.release.cli", "check released weights against all that is assumed"),
    ("codec", "train", "tiny"): Command("train.codec.tiny", "the codec that is shipped, latents of single frames"),
    ("codec", "train", "fsq"): Command("train.codec.fsq", "a tokenizer for next block prediction, codes of 4 frames"),
    ("codec", "psnr"): Command("evaluate.codec", "what a codec keeps of your own videos"),
    ("scaling", "plan"): Command("scaling.ladder.plan_cli", "runs of several sizes by rules, and what they take"),
    ("scaling", "run"): Command("scaling.ladder.run_cli", "launch such a ladder, or go on with it"),
    ("scaling", "status"): Command("scaling.ladder.status_cli", "how far a ladder is"),
    ("scaling", "fit"): Command("scaling.cli", "how the loss falls with parameters and tokens, from runs"),
    ("cost",): Command("train.cost.cli", "measure what a token and a pair cost on this device", shared=True),
    ("state",): Command("checkpoint.state", "say whether a run is new, resumes or is finished"),
}

EXAMPLES = """\
examples:
  python -m megatron_videogpt data prepare videos/ --output shards/
  python -m megatron_videogpt data encode shards/ --output latents/ --codec autoencoder_kl --codec-path sdxl-vae
  python -m megatron_videogpt data encode-text shards/ --encoder clip --encoder-path clip-vit-large-patch14
  python -m megatron_videogpt convert to-hf runs/mine --output mine-hf
  python -m megatron_videogpt convert from-hf Video-GPT --output runs/released
  python -m megatron_videogpt codec psnr videos/
  python -m megatron_videogpt scaling plan examples/scaling/cpu.toml
  python -m megatron_videogpt scaling fit runs/ladder --hold-out 1
Each has examples of its own: --help behind it.
"""
TORCHRUN = "\nIt runs in one process, or in several that torchrun starts: they share out the work.\n"


def names() -> list[str]:
    """First words of these commands."""
    return list(dict.fromkeys(path[0] for path in (*GROUPS, *COMMANDS)))


def asked(argv: Sequence[str]) -> Words | None:
    """The command that a command line begins with, None for none of these."""
    return next((path for path in COMMANDS if path == tuple(argv[: len(path)])), None)


def module_of(path: Words) -> ModuleType:
    """Where a command is, imported now."""
    return importlib.import_module(f".{COMMANDS[path].module}", __package__)


def add(commands: argparse._SubParsersAction, common: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """All of them to a parser's commands, with arguments where `argv` asks for them.

    common: options that every command has.
    """
    raw = argparse.RawDescriptionHelpFormatter
    inside: dict[Words, argparse._SubParsersAction] = {(): commands}
    for path, about in GROUPS.items():
        group = inside[path[:-1]].add_parser(path[-1], help=about, epilog=_examples(path), formatter_class=raw)
        inside[path] = group.add_subparsers(dest="part", required=True, metavar="COMMAND")
    wanted = asked(argv)
    for path, command in COMMANDS.items():
        leaf = inside[path[:-1]].add_parser(path[-1], help=command.about, parents=[common], formatter_class=raw)
        if path == wanted:
            module_of(path).add_arguments(leaf)
            if command.shared:
                leaf.epilog = (leaf.epilog or "") + TORCHRUN
            leaf.set_defaults(asked=path, words=list(argv[len(path) :]), parser=leaf)


def _examples(group: Words) -> str:
    """Those of a group."""
    head, *lines = EXAMPLES.splitlines()
    fitting = [line for line in lines if f" {' '.join(group)} " in line]
    return "\n".join([head, *fitting, *lines[-1:]]) if fitting else lines[-1]


def run(args: argparse.Namespace) -> int:
    """The command that was parsed; its exit code."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not (
        COMMANDS[args.asked].shared or args.asked == ("convert", "from-hf")
    ):
        # That one starts several processes of itself where the layout asks for them.
        raise UserError(f"{' '.join(args.asked)} runs in one process: start it without torchrun")
    module = module_of(args.asked)
    try:
        with signals.until_signal():
            return module.run(args) or 0
    except signals.Interrupted as stopped:
        after = module.after(args) if hasattr(module, "after") else AFTER
        return signals.exit_code(stopped, after)
