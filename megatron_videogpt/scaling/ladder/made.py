"""A plan: the runs of a ladder on their devices, those that a budget leaves, and what is written of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config.schema import Config
from ...errors import UserError
from ...version import __version__
from .cost import Priced, affordable, ladder_hours, price
from .folder import check_folder, write_plan
from .grid import plan_ladder
from .options import Ladder, as_dict
from .rules import told


@dataclass(frozen=True)
class Plan:
    """source: the ladder's file; base: its recipe; kept: the runs that are launched; dropped: those that the budget
    does not pay for.
    """

    source: Path
    ladder: Ladder
    base: Config
    kept: tuple[Priced, ...]
    dropped: tuple[Priced, ...]

    @property
    def output(self) -> Path:
        """The ladder's folder."""
        return Path(self.ladder.output)

    @property
    def held_out(self) -> list[Priced]:
        """Of those that are launched."""
        return [one for one in self.kept if one.run.held_out]

    @property
    def points(self) -> int:
        """That a fit gets, those that are held out included."""
        return sum(len(one.run.points) for one in self.kept)


def make_plan(args: argparse.Namespace) -> Plan:
    """From the arguments of `plan` and `run`.

    Raises:
        UserError, ConfigError: a line for whatever is wrong with the ladder.
    """
    ladder, base, runs = plan_ladder(args.file, args.overrides)
    given = {"gpus": args.gpus, "memory_gb": args.memory_gb}
    ladder = replace(ladder, **{name: value for name, value in given.items() if value is not None})
    priced = price(runs, ladder, args.mfu)
    _check_held_out(priced)
    kept, dropped = affordable(priced, args.budget) if args.budget else (priced, [])
    return Plan(args.file, ladder, base, tuple(kept), tuple(dropped))


def _check_held_out(priced: Sequence[Priced]) -> None:
    """What is held out is of larger compute than all else, or a fit would hold out another point."""
    fitted = [one for one in priced if not one.run.held_out]
    largest = max(fitted, key=lambda one: one.cost.six_nd)
    for one in priced:
        if one.run.held_out and one.cost.six_nd <= largest.cost.six_nd:
            raise UserError(
                f"ladder.hold_out: {one.run.name} takes {one.cost.six_nd:.3g} FLOPs (6 N D), no more than "
                f"{largest.run.name} with {largest.cost.six_nd:.3g}; a run that is to be predicted must be the largest"
            )


def times_largest(plan: Plan, one: Priced) -> float:
    """Compute (6 N D) of a run as a multiple of the largest one's that is fitted."""
    fitted = [other.cost.six_nd for other in plan.kept if not other.run.held_out]
    return one.cost.six_nd / max(fitted) if fitted else float("inf")


def record(plan: Plan) -> None:
    """Write the plan into the ladder's folder, whose lock the caller holds.

    Raises:
        UserError: a run is there that is not of this ladder, or began with other options.
    """
    configs = {one.run.name: one.run.config for one in (*plan.kept, *plan.dropped)}
    check_folder(plan.output, plan.ladder, configs)
    write_plan(plan.output, described(plan), configs)


def described(plan: Plan) -> dict[str, Any]:
    """A plan as JSON has it."""
    return {
        "source": str(plan.source),
        "ladder": as_dict(plan.ladder),
        "rules": dict(told(plan.base, plan.ladder)),
        "runs": [_run(one) for one in plan.kept],
        "dropped": [one.run.name for one in plan.dropped],
        "total": totals(plan.kept),
        "hours": ladder_hours(plan.kept, plan.ladder),
        "version": __version__,
    }


def totals(priced: Sequence[Priced]) -> dict[str, float | None]:
    """Sums over runs; of codecs None where one is not known."""
    costs = [one.cost for one in priced]
    known = [cost.codec for cost in costs if cost.codec is not None]
    return {
        "tokens": sum(cost.tokens for cost in costs),
        "flops": sum(cost.flops for cost in costs),
        "six_nd": sum(cost.six_nd for cost in costs),
        "codec_flops": sum(known) if len(known) == len(costs) else None,
        "device_hours": sum(cost.device_hours for cost in costs),
    }


def _run(one: Priced) -> dict[str, Any]:
    run, cost = one.run, one.cost
    model, optimizer, train = run.config.model, run.config.optimizer, run.config.train
    batch = train.global_batch_size * cost.sample_tokens
    return {
        "name": run.name,
        "held_out": run.held_out,
        "target": run.target,
        "parameters": run.counts.all,
        "decoder_parameters": run.counts.decoder,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "ffn_hidden_size": model.ffn_hidden_size,
        "samples": train.global_batch_size,
        "batch_tokens": batch,
        "steps": train.steps,
        "points": list(run.points),
        "point_tokens": [step * batch for step in run.points],
        "tokens": cost.tokens,
        "learning_rate": optimizer.lr,
        "beta2": optimizer.betas[1],
        "warmup_steps": optimizer.warmup_steps,
        "schedule": optimizer.schedule,
        "flops": cost.flops,
        "six_nd": cost.six_nd,
        "codec_flops": cost.codec,
        "devices": cost.devices,
        "memory_bytes": cost.memory.total,
        "seconds": cost.seconds,
        "device_hours": cost.device_hours,
        "mfu": cost.speed.mfu,
        "speed": cost.speed.source,
        "best_layout": None if cost.best is None else list(cost.best.overrides),
        "best_layout_mfu": None if cost.best is None else cost.best.mfu,
    }
