"""`--shrink`: the same run made small, to try in a minute all that the real one goes through.

Widths, layers, heads, frames and sides of frames are divided; batch, steps and validation become as short as they can
be.  Objective, codec, data and parallel layout stay, and so does every option that the command line gives.  Sections
that others own say themselves how they shrink (`sections.Section.shrink`).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil, lcm
from pathlib import Path
from typing import Any

from . import sections
from .check import check_config, find_problems, load_checked
from .derived import dp_size
from .load import ConfigError, read_config
from .options import options, value_of
from .overrides import split
from .schedules import decays
from .schema import Config
from .toml import show

FACTOR = 16
SUFFIX = "-shrunk"
"""Behind `train.output`, so that nobody takes one run for the other."""
STEPS, BATCH, FRAMES, HELD_OUT = 2, 4, 4, 4
HELP = (
    f"the same run made small, to try all that it goes through: sizes divided by N (default: {FACTOR}), {STEPS} steps; "
    "prints what it changes; options of the command line stay as they are given"
)


@dataclass(frozen=True)
class Change:
    """An option, what the configuration says and what the small run has."""

    name: str
    was: Any
    now: Any


class Shrinking:
    """A configuration on its way.

    was: as the user has it; config: as it is by now; factor: what sizes are divided by; given: options that stay.
    """

    def __init__(self, config: Config, factor: int, given: Collection[str] = ()) -> None:
        self.was, self.config, self.factor, self.given = config, config, factor, frozenset(given)

    def set(self, name: str, value: Any) -> None:
        """Change an option, unless it was given."""
        if name not in self.given:
            self.config = _with(self.config, name.split("."), value)

    def divided(self, name: str, least: int = 1, multiple: int = 1) -> int:
        """What is left of a number: see `fewer`."""
        return fewer(value_of(self.was, name), 1, self.factor, least, multiple)

    def divide(self, name: str, least: int = 1, multiple: int = 1) -> None:
        """Set an option to what is left of it."""
        self.set(name, self.divided(name, least, multiple))

    def limit(self, name: str, most: int) -> None:
        """Set an option to at most this."""
        self.set(name, min(value_of(self.was, name), most))

    def frames(self, count: int) -> None:
        """`data.frames`, and with it what is counted in frames: clips of samples, and what is sampled."""
        self.set("data.frames", count)
        before, after = self.was.data, self.config.data.frames
        # What was as many as the frames, as clips of single frames, still is.
        low, high = (max(min(n, 2), fewer(n, after, before.frames)) for n in before.clips)
        self.set("data.clips", (min(low, after), min(max(low, high), after)))
        self.set("data.min_frames", fewer(before.min_frames, after, before.frames))
        sample = self.was.sample
        self.set("sample.clips", tuple(max(1, n * after // before.frames) for n in sample.clips[:2]))
        self.set("sample.history", max(min(sample.history, 1), sample.history * after // before.frames))
        longest = max(self.config.sample.clips)
        self.set("sample.window", max(fewer(sample.window, after, before.frames), longest + 1))


def fewer(number: int, share: int, of: int, least: int = 1, multiple: int = 1) -> int:
    """``number * share / of``, rounded up to a multiple, at least `least`, but never more than it was."""
    wanted = max(-(-number * share // of), min(least, number))
    return min(number, -(-wanted // multiple) * multiple)


def shrink(
    config: Config, factor: int = FACTOR, given: Collection[str] = (), world_size: int | None = None
) -> tuple[Config, list[Change]]:
    """The small configuration, and what differs from the one that the user has.

    given: options that stay, such as those of the command line; world_size: processes of the run; None for as many as
    one replica of the model takes.
    """
    small = Shrinking(config, factor, given)
    _shrink_model(small)
    small.frames(small.divided("data.frames", FRAMES))
    # The codec first: what an objective makes of a frame follows from its size.
    for kind in ("codec", "objective", "condition"):
        own = sections.find(kind, value_of(config, f"{kind}.{sections.KINDS[kind]}")).shrink
        if own is not None:
            own(small)
    _shrink_rows(small)
    _shrink_run(small, world_size)
    names = (option.name for option in options(of=config))
    pairs = ((name, value_of(config, name), value_of(small.config, name)) for name in names)
    return small.config, [Change(name, was, now) for name, was, now in pairs if was != now]


def load(path: Path, overrides: Sequence[str], world_size: int | None, factor: int | None, tell: bool = True) -> Config:
    """`check.load_checked`; with a factor the run made small, and checked again.  tell: print what changes.

    Raises:
        ConfigError: the run itself would be refused, in any number of processes, or the small one in this number.
    """
    if factor is None:
        return load_checked(path, overrides, world_size)
    config, problems, broken = read_config(path, overrides)
    problems += find_problems(config, None, broken)
    if problems:
        raise ConfigError(problems)
    small, changes = shrink(config, factor, [name for name, _ in split(overrides)[0]], world_size)
    if tell:
        print(describe(changes, factor), flush=True)
    check_config(small, world_size)
    return small


def describe(changes: Sequence[Change], factor: int) -> str:
    """A table of what changed."""
    rows = [("option", "was", "is"), *((each.name, show(each.was), show(each.now)) for each in changes)]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = (f"  {name:{wide[0]}}  {was:{wide[1]}}  {now}" for name, was, now in rows)
    return "\n".join([f"shrunk: sizes divided by {factor}; what the command line gives stays", *lines])


def add_argument(parser: argparse.ArgumentParser) -> None:
    """`--shrink`; `with_factor` goes over the command line first."""
    parser.add_argument("--shrink", type=_factor, metavar="N", nargs="?", help=HELP)


def with_factor(argv: Sequence[str]) -> list[str]:
    """Arguments with a bare `--shrink` filled in: argparse would take the word behind it for its number."""
    found: list[str] = []
    for word, after in zip(argv, [*argv[1:], ""]):
        bare = word == "--shrink" and not after.lstrip("-").isdecimal()
        found.append(f"--shrink={FACTOR}" if bare else word)
    return found


def _factor(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 2, for example {FACTOR}")
    return int(text)


def _with(section: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a section with an option of it, or of one inside it, changed."""
    name, *rest = path
    return replace(section, **{name: _with(getattr(section, name), rest, value) if rest else value})


def _shrink_model(small: Shrinking) -> None:
    """Heads keep their width, which long RoPE's factors and kernels are made for."""
    model, layout = small.was.model, small.was.parallel
    names = {"model.hidden_size", "model.num_attention_heads", "model.num_query_groups"}
    if not names & small.given:
        heads, groups = _heads(small)
        small.set("model.num_attention_heads", heads)
        small.set("model.num_query_groups", groups if model.num_query_groups else 0)
        small.set("model.hidden_size", heads * model.head_dim)
    share = small.config.model.hidden_size, model.hidden_size
    small.set("model.ffn_hidden_size", fewer(model.ffn_hidden_size, *share, multiple=lcm(8, layout.tensor)))
    if layout.pipeline_layers and "model.num_layers" not in small.given:
        stages = [fewer(layers, 1, small.factor) for layers in layout.pipeline_layers]
        small.set("parallel.pipeline_layers", tuple(stages))
    if small.config.parallel.pipeline_layers:
        small.set("model.num_layers", sum(small.config.parallel.pipeline_layers))
    else:
        small.divide("model.num_layers", max(2, layout.stages))
    small.divide("parallel.recompute_layers")


def _heads(small: Shrinking) -> tuple[int, int]:
    """(query heads, key and value heads) that the layout divides, as many of the former to one of the latter as
    before.
    """
    model, layout = small.was.model, small.was.parallel
    each, tensor = model.num_attention_heads // model.kv_heads, layout.tensor
    for groups in range(ceil(model.kv_heads / small.factor), model.kv_heads):
        heads = groups * each
        whole = not heads % (tensor * layout.context) and (not groups % tensor or not tensor % groups)
        if whole and heads > 1 and not heads * model.head_dim % 4:
            return heads, groups
    return model.num_attention_heads, model.kv_heads


def _shrink_rows(small: Shrinking) -> None:
    """Rows that are filled by tokens: of a frame's area and of frames, with room for what does not grow with either."""
    was, now = small.was.data, small.config.data
    sides = (was.physics.size, now.physics.size) if was.source == "physics" else (was.longest_side, now.longest_side)
    share = now.frames * sides[1] ** 2, was.frames * sides[0] ** 2
    small.set("data.pack_tokens", fewer(was.pack_tokens, 2 * share[0], share[1], 1024))


def _shrink_run(small: Shrinking, world_size: int | None) -> None:
    """As few steps and samples as go through everything."""
    small.limit("train.steps", STEPS)
    steps = small.config.train.steps
    small.limit("train.micro_batch_size", 2)
    small.set("train.global_batch_size", _batch(small, world_size))
    small.limit("optimizer.warmup_steps", 1)
    if decays(small.was.optimizer, small.was.train.steps):
        small.set("optimizer.lr_wsd_decay_iters", 1)
    if small.was.optimizer.lr_wsd_decay_ends:
        small.set("optimizer.lr_wsd_decay_ends", (steps,))
    for name in ("checkpoint.every", "eval.every", "eval.predict_every"):
        small.limit(name, steps)
    small.limit("eval.samples", HELD_OUT)
    small.limit("eval.final_scenes", 2)
    if "steps" not in sections.not_sampled_with(small.was.objective.name):
        small.divide("sample.steps", 2)
    small.limit("logging.every", 1)
    small.set("train.output", small.was.train.output + SUFFIX)
    if small.was.train.init_from:
        small.set("train.init_from", small.was.train.init_from + SUFFIX)


def _batch(small: Shrinking, world_size: int | None) -> int:
    """Samples of a step: a few, one micro-batch for every pipeline stage at least, whole ones on every replica."""
    layout, each = small.was.parallel, small.config.train.micro_batch_size
    replicas = max(1, dp_size(small.was, world_size or layout.model_size))
    step = replicas * each * (layout.pipeline if layout.virtual_pipeline > 1 else 1)
    wanted = min(max(BATCH, layout.pipeline * each), small.was.train.global_batch_size)
    return -(-wanted // step) * step
