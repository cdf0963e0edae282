"""What a ladder's runs take: FLOPs, devices, memory, time; and which of them a budget pays for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...codec.geometry import expected_geometry
from ...config.check import find_problems
from ...config.derived import typical_frame
from ...config.load import ConfigError
from ...config.schema import Config
from ...errors import UserError
from ...plan.estimate import longest_row, objective_work, sample_flops
from ...plan.memory import RESERVE, Memory, rank_memory
from ...plan.planner import Plan, Speed, propose, speed_of
from ...plan.recompute import least_recompute, with_policy
from ..law import FLOPS
from .codec_cost import encoding_flops
from .grid import Planned
from .options import PLANNED, Ladder

HOUR = 3600.0
WORTH = 0.7
"""A run whose layout is planned gets as many devices as keep this share of the best estimated MFU."""


@dataclass(frozen=True)
class Cost:
    """Of a run.

    sample_tokens: expected of a sample; tokens: of the whole run; flops: forward and backward, attention on attended
    pairs; six_nd: by the convention; codec: of encoding its frames, None where the codec is not there; devices: of the
    run; memory: of the fullest rank; seconds: at `speed`; best: what the planner proposes for as many devices, None
    where nothing fits.
    """

    sample_tokens: float
    tokens: float
    flops: float
    six_nd: float
    codec: float | None
    devices: int
    memory: Memory
    seconds: float
    speed: Speed
    best: Plan | None

    @property
    def device_hours(self) -> float:
        """Devices times hours."""
        return self.devices * self.seconds / HOUR


@dataclass(frozen=True)
class Priced:
    """A run with its layout and what it takes."""

    run: Planned
    cost: Cost


def price(runs: Sequence[Planned], ladder: Ladder, mfu: float | None = None) -> list[Priced]:
    """Every run on its devices, in its layout.

    mfu: that times are told by whatever runs have measured, None for none.

    Raises:
        UserError: one does not fit the memory, or no number of devices fits its layout and batch.
    """
    if ladder.gpus_per_run > ladder.gpus:
        raise UserError(
            f"ladder.gpus_per_run = {ladder.gpus_per_run}: is more than there are, {ladder.gpus}; use more --gpus"
        )
    # The largest first: it is the one that does not fit.
    order = sorted(runs, key=lambda run: (run.counts.all, run.points[-1]), reverse=True)
    own = {run.name: _measured(run) for run in order} if mfu is None else {}
    of_size = {_size(run): speed for run in order if (speed := own.get(run.name)) is not None}
    found = {run.name: _priced(run, ladder, mfu, own.get(run.name) or of_size.get(_size(run))) for run in order}
    return [found[run.name] for run in runs]


def _size(run: Planned) -> tuple[int, int]:
    """Runs of one are as fast as each other."""
    return run.config.model.hidden_size, run.config.model.num_layers


def _measured(run: Planned) -> Speed | None:
    speed = speed_of(run.config, None)
    return speed if speed.source.startswith("measured") else None


def _priced(run: Planned, ladder: Ladder, mfu: float | None, measured: Speed | None) -> Priced:
    config = run.config
    channels = expected_geometry(config.codec).channels
    work = objective_work(config).expected(typical_frame(config))
    placed, devices, best = _placed(run, ladder, channels)
    memory = _memory(run.name, placed, devices, channels, ladder)
    speed = measured or speed_of(placed, mfu if mfu is not None else ladder.mfu or None)
    samples = config.train.steps * config.train.global_batch_size
    flops, encoding = sample_flops(config, work) * samples, encoding_flops(config)
    size, tokens = run.counts.of(ladder.parameters), work.tokens * samples
    cost = Cost(
        sample_tokens=work.tokens,
        tokens=tokens,
        flops=flops,
        six_nd=FLOPS * size * tokens,
        codec=None if encoding is None else encoding * samples,
        devices=devices,
        memory=memory,
        # What was measured has everything in it.
        seconds=flops / (speed.flops * devices) + (0 if measured else ladder.overhead * config.train.steps),
        speed=speed,
        best=best,
    )
    return Priced(replace(run, config=placed), cost)


def _placed(run: Planned, ladder: Ladder, channels: int) -> tuple[Config, int, Plan | None]:
    """The run in its layout, its devices, and what the planner proposes for as many."""
    config, counts = run.config, _counts(ladder)
    work = objective_work(config).expected(typical_frame(config))

    def proposed(devices: int) -> Plan | None:
        return next(iter(propose(config, channels, devices, work, ladder.memory_gb * 1e9, most=1)), None)

    if ladder.layout == PLANNED:
        plans = [plan for plan in map(proposed, counts) if plan is not None]
        if not plans:
            raise _too_large(run.name, config, channels, counts[0], ladder)
        best = max(plan.mfu for plan in plans)
        plan = next(plan for plan in plans if plan.mfu >= WORTH * best)
        return plan.config, plan.world_size, plan
    problems = list[str]()
    for devices in counts:
        problems = find_problems(config, devices)
        if not problems:
            return config, devices, proposed(devices)
    raise ConfigError([f"{run.name}: {line}" for line in problems])


def _counts(ladder: Ladder) -> list[int]:
    """Numbers of devices that a run may have, most first."""
    if ladder.gpus_per_run:
        return [ladder.gpus_per_run]
    return [count for count in range(ladder.gpus, 0, -1) if ladder.gpus % count == 0]


def _memory(name: str, config: Config, devices: int, channels: int, ladder: Ladder) -> Memory:
    """Of the fullest rank, which fits."""
    longest = longest_row(config)
    if config.parallel.recompute == "auto":
        config = least_recompute(config, devices, channels, longest, ladder.memory_gb * 1e9) or with_policy(
            config, "full"
        )
    memory = rank_memory(config, channels, devices, longest)
    if memory.total > ladder.memory_gb * 1e9 * (1 - RESERVE):
        raise _too_large(name, config, channels, devices, ladder)
    return memory


def _too_large(name: str, config: Config, channels: int, devices: int, ladder: Ladder) -> UserError:
    longest = longest_row(config)
    need = rank_memory(with_policy(config, "full"), channels, devices, longest).total / (1 - RESERVE)
    planned = ladder.layout == PLANNED
    asked = "no layout that the planner knows fits" if planned else "its layout does not fit"
    more = "" if planned else 'ladder.layout = "plan", '
    return UserError(
        f"{name}: does not fit devices of {ladder.memory_gb:g} GB: rows of {longest.tokens:,.0f} tokens need "
        f"{need / 1e9:.1f} GB in the recipe's layout even with full recomputation, and {asked} on {devices} of them; "
        f"use {more}more --gpus, a larger --memory-gb, or leave that size out"
    )


def affordable(priced: Sequence[Priced], budget: str) -> tuple[list[Priced], list[Priced]]:
    """(runs that a budget pays for, those that are dropped for it: the largest).

    budget: FLOPs on attended pairs (1e21), or hours of a device (500h).

    Raises:
        UserError: not even the smallest run is within it, or it is no budget.
    """
    limit, hours = parse_budget(budget)

    def costs(one: Priced) -> float:
        return one.cost.device_hours if hours else one.cost.flops

    kept = sorted(priced, key=costs)
    while kept and sum(map(costs, kept)) > limit:
        kept.pop()
    if not kept:
        least = min(map(costs, priced))
        need = f"{least:.3g}h" if hours else f"{least:.3g}"
        raise UserError(f"--budget {budget}: pays for no run; the smallest takes {need}")
    names = {one.run.name for one in kept}
    return [one for one in priced if one.run.name in names], [one for one in priced if one.run.name not in names]


def parse_budget(text: str) -> tuple[float, bool]:
    """(number, whether it is hours of a device); UserError where it is none."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(h?)\s*", text, re.IGNORECASE)
    try:
        value = float(found[1]) if found else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or found is None:
        raise UserError(f"--budget {text}: must be FLOPs, for example 1e21, or hours of a device, for example 500h")
    return value, bool(found[2])


def ladder_hours(priced: Sequence[Priced], ladder: Ladder) -> float:
    """Hours until all runs are done, started in `launch_order` as soon as there are devices for one."""
    waiting, now, free = launch_order(priced, ladder), 0.0, ladder.gpus
    running: list[tuple[float, int]] = []
    while waiting or running:
        for one in list(waiting):
            if one.cost.devices <= free and (not ladder.at_once or len(running) < ladder.at_once):
                waiting.remove(one)
                running.append((now + one.cost.seconds / HOUR, one.cost.devices))
                free -= one.cost.devices
        running.sort()
        now, devices = running.pop(0)
        free += devices
    return now


def launch_order(priced: Sequence[Priced], ladder: Ladder) -> list[Priced]:
    """Shortest first, which shows early what is wrong; where several go at a time longest first, so that no device
    waits for a long one at the end.
    """
    several = ladder.at_once != 1 and min(one.cost.devices for one in priced) < ladder.gpus
    return sorted(priced, key=lambda one: -one.cost.seconds if several else one.cost.seconds)
