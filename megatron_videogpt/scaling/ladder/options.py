"""What a ladder is: the section [ladder] of its file, beside which the file is a recipe as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...config.load import ConfigError, build_section, parse_file
from ...config.options import options
from ...config.overrides import set_value, split
from ...config.sections import option
from ...config.toml import show, to_toml
from ..runs import ALL, DECODER

SECTION = "ladder"
BASE, PLANNED = "base", "plan"
"""What `schedule` and `layout` may say beside a schedule: as the recipe has it; the planner's best layout."""
SCHEDULES = ("wsd", "wsd_s", BASE)
AXES = (("sizes", "multiples"), ("sizes", "tokens"), ("sizes", "budgets"), ("budgets", "multiples"))
"""Pairs of options that span a grid."""


@dataclass(frozen=True)
class Ladder:
    """A grid of runs and the rules by which a size gets its width, rates and batch.

    Numbers of OLMo-core's ladder (`WSDSChinchillaRunConfigurator`, August 2026) are the defaults of what depends on
    size; they were found for texts.
    """

    output: str = option("runs/ladder", "folder of the ladder: its plan, and a folder for each run", path=True)
    sizes: tuple[float, ...] = option((), "parameters N of the models; widths are whole heads, so that N is only near")
    multiples: tuple[float, ...] = option((), "tokens D of the runs, as multiples of tokens_per_parameter x N")
    tokens: tuple[float, ...] = option((), "tokens D of the runs themselves, in place of multiples")
    budgets: tuple[float, ...] = option((), "compute C = 6 N D of the runs in FLOPs, in place of sizes or of multiples")
    hold_out: tuple[tuple[float, float], ...] = option(
        (),
        "further runs that a fit is to predict, pairs such as the grid has: [[3e6, 40]] of sizes and multiples",
    )
    tokens_per_parameter: float = option(20.0, "tokens for each parameter that a multiple of 1 stands for")
    parameters: str = option(
        ALL, "what N counts: all that is trained, or the decoder without embedding and head", choices=(ALL, DECODER)
    )
    schedule: str = option(
        "wsd",
        "of the learning rate: wsd, a run for each point; wsd_s, one for all points of a size, with a decay at the end "
        "of each; base, the recipe's, a run for each point",
        choices=SCHEDULES,
    )
    head_dim: int = option(0, "channels of a head in every model; 0: the recipe's")
    heads_multiple: int = option(1, "the number of heads is a multiple of this, so that tensor parallelism divides it")
    aspect: float = option(0.0, "width over layers; 0: the recipe's")
    feed_forward: float = option(0.0, "inner width of the feed-forward over width; 0: the recipe's")
    reference_size: float = option(108e6, "parameters at which the rules below have their own values")
    lr: float = option(0.00235, "learning rate: lr x (N / reference_size)^lr_exponent; 0: the recipe's")
    lr_exponent: float = option(-1 / 3, "see lr")
    batch_tokens: float = option(
        2048 * 160.0, "tokens of a step: batch_tokens x (N / reference_size)^batch_exponent; 0: the recipe's batch"
    )
    batch_exponent: float = option(2 / 3, "see batch_tokens")
    batch_multiple: int = option(8, "the samples of a step are a multiple of this")
    beta2: tuple[tuple[float, float], ...] = option(
        ((0.0, 0.99), (524288.0, 0.95)), "Adam's beta2 from a number of tokens of a step on; []: the recipe's"
    )
    warmup: float = option(1.0, "tokens of the warm-up for each parameter; 0: the recipe's steps")
    warmup_share: float = option(0.25, "and at most this share of the steps of the shortest point of that size")
    validations: int = option(4, "validations of a run, evenly spaced; 0: the recipe's eval.every")
    checkpoints: int = option(4, "checkpoints of a run, evenly spaced; 0: the recipe's checkpoint.every")
    override: tuple[dict, ...] = option(
        (), 'options of runs by name, which may have * in it: [{run = "30M-*", set = ["optimizer.lr=1e-4"]}]'
    )
    gpus: int = option(1, "devices (processes) that there are")
    gpus_per_run: int = option(0, "devices of one run; 0: as many as can share its batch")
    at_once: int = option(0, "runs at a time; 0: as many as there are devices for")
    memory_gb: float = option(80.0, "memory of a device in 10^9 bytes")
    layout: str = option(
        BASE,
        "parallel layout of the runs: the recipe's, or the one that the planner proposes",
        choices=(BASE, PLANNED),
    )
    mfu: float = option(0.0, "model FLOP utilisation that times are told by until runs have measured their own; 0: 0.4")
    overhead: float = option(0.0, "seconds of a step beside its model FLOPs: data, codec, starting kernels")
    retries: int = option(2, "attempts after one that failed, in a row without a new checkpoint")
    command: str = option(
        "",
        "what starts a run and ends with it; {config}, {name}, {output}, {gpus} and {nodes} (of 8) are filled in; "
        '"": python or torchrun on this machine',
    )

    @property
    def axes(self) -> tuple[str, str]:
        """The two that span the grid, as they are named here."""
        return next(pair for pair in AXES if all(getattr(self, name) for name in pair))


RANGES: tuple[tuple[str, str], ...] = (
    (
        "above 0",
        "sizes multiples tokens budgets hold_out tokens_per_parameter reference_size heads_multiple batch_multiple "
        "gpus memory_gb warmup_share",
    ),
    (
        "at least 0",
        "head_dim aspect feed_forward lr batch_tokens beta2 warmup validations checkpoints gpus_per_run at_once mfu "
        "overhead retries",
    ),
)


def read_ladder(path: Path, overrides: Sequence[str] = ()) -> tuple[Ladder, dict[str, Any]]:
    """A ladder's file: its section [ladder], and what else is in it, a recipe with its base.

    overrides: of that section alone, ``ladder.gpus=8``.

    Raises:
        ConfigError: what cannot be read, unknown options, values out of range; a line each.
    """
    values = parse_file(path)
    own = values.pop(SECTION, None)
    if not isinstance(own, dict):
        raise ConfigError(
            [f"{path}: has no section [{SECTION}], so that it is no ladder; examples are in examples/scaling/"]
        )
    pairs, wrong = split(overrides)
    for name, value in pairs:
        set_value(own, name.split(".")[1:], value)
    ladder, problems, broken = build_section(Ladder, own, f"{SECTION}.")
    problems = [f"{path}: {line}" for line in [*wrong, *problems, *wrong_values(ladder, broken)]]
    if problems:
        raise ConfigError(problems)
    return ladder, values


def wrong_values(ladder: Ladder, broken: set[str]) -> list[str]:
    """What is out of range, a line each; options in `broken` have a line already."""
    problems = []
    for known in options(Ladder, f"{SECTION}."):
        value, name = getattr(ladder, known.name.rpartition(".")[2]), known.name
        if name not in broken and known.choices and value not in known.choices:
            problems.append(f"{name} = {show(value)}: must be one of {', '.join(known.choices)}")
    for must, names in RANGES:
        for short in names.split():
            value, name = getattr(ladder, short), f"{SECTION}.{short}"
            low = min(_numbers(value), default=1)
            if name not in broken and (low < 0 or (low == 0 and must == "above 0")):
                default = next(item.default for item in options(Ladder, f"{SECTION}.") if item.name == name)
                fix = f"use for example {to_toml(default)}" if default else "leave such entries out"
                problems.append(f"{name} = {show(value)}: must be {must}; {fix}")
    return problems or _wrong_grid(ladder, broken)


def _wrong_grid(ladder: Ladder, broken: set[str]) -> list[str]:
    axes = ("sizes", "multiples", "tokens", "budgets")
    given = tuple(name for name in axes if getattr(ladder, name))
    if any(f"{SECTION}.{name}" in broken for name in (*axes, "hold_out", "beta2")):
        return []
    if sorted(given) not in map(sorted, AXES):
        pairs = ", or ".join(" and ".join(pair) for pair in AXES)
        return [
            f"{SECTION} has {', '.join(given) or 'no axis'}: a grid is spanned by {pairs}; use for example "
            "sizes = [1e6, 3e6, 1e7] and multiples = [0.5, 1, 2]"
        ]
    if ladder.schedule == "wsd_s" and "sizes" not in given:
        return [
            f'{SECTION}.schedule = "wsd_s": must be wsd or base with budgets and multiples, where every run '
            "has another size; a run of several points is one of sizes"
        ]
    twice = [name for name in given if len(set(getattr(ladder, name))) < len(getattr(ladder, name))]
    if twice:
        return [f"{SECTION}.{twice[0]} = {show(getattr(ladder, twice[0]))}: an entry is there twice; leave one out"]
    starts = [start for start, _ in ladder.beta2]
    if starts != sorted(set(starts)) or starts[:1] not in ([], [0]) or any(beta >= 1 for _, beta in ladder.beta2):
        return [
            f"{SECTION}.beta2 = {show(ladder.beta2)}: must have pairs [tokens, beta2] from 0 tokens on, ascending, "
            "with beta2 below 1; use for example [[0, 0.99], [524288, 0.95]]"
        ]
    return _wrong_overrides(ladder)


def _wrong_overrides(ladder: Ladder) -> list[str]:
    for entry in ladder.override:
        texts = entry.get("set")
        listed = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if set(entry) != {"run", "set"} or not isinstance(entry["run"], str) or not listed:
            return [
                f"{SECTION}.override has {show(entry)}: an entry has run, a name, and set, a list of options as on the "
                'command line; use for example {run = "30M-*", set = ["optimizer.lr=1e-4"]}'
            ]
    return []


def _numbers(value: Any) -> list[float]:
    """Every number in an option's value."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for entry in value for number in _numbers(entry)]
    return [float(value)]


def as_dict(ladder: Ladder) -> dict[str, Any]:
    """Its options as JSON has them."""
    return {item.name: _plain(getattr(ladder, item.name)) for item in fields(ladder)}


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
