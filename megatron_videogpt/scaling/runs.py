"""Points from runs of this project: parameters and tokens follow from `config.toml`, losses are in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.derived import typical_frame
from ..config.load import ConfigError, load_config
from ..config.options import options, value_of
from ..config.overrides import tomllib
from ..config.schedules import decays
from ..config.schema import Config
from ..config.toml import show
from ..errors import UserError, unusable
from .points import Point

CONFIG, METRICS = "config.toml", "metrics.jsonl"
LOSS = "validation_loss"
LEVEL, ERROR = f"{LOSS}_", "validation_se_"
"""Names in metrics.jsonl; what begins with the second is a loss of its own: by noise level, by latent frame.  Behind
the third stands what the number is the standard error of.
"""

ALL, DECODER = "all", "decoder"
"""Which parameters count as N: every trained one, or those of the decoder's layers and its last norm."""

DIVERGED = 1.5
"""A run whose last validation loss is above this multiple of its lowest has diverged."""

SETS = ("data", "codec", "condition", "objective")
"""Sections that decide what a validation loss is measured on, and what it is."""

READING = frozenset(
    f"data.{name}"
    for name in """workers prefetch worker_timeout decode_threads cache cache_gb max_bad_fraction pack_tokens
    row_lengths cost cost_buckets allow_changed share_encoding physics.epoch_scenes""".split()
)
"""Options of these sections that decide only how samples are read, or concern training alone."""


@dataclass(frozen=True)
class Run:
    """A run as it was read.

    points: one, or one for each decay of WSD-S; tokens, losses: its validation losses, float64 ``[n]``, by the tokens
    seen; validated: every option that its validation loss depends on, beside the model.
    """

    folder: Path
    points: tuple[Point, ...]
    parameters: float
    tokens: np.ndarray
    losses: np.ndarray
    validated: dict[str, Any]


def find_runs(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else the runs in it.

    Raises:
        UserError: there are none.
    """
    if (folder / METRICS).is_file() or (folder / CONFIG).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{METRICS}")) if folder.is_dir() else []
    if not found:
        what = f"no {METRICS} in it, nor in a folder of it" if folder.is_dir() else "there is no such folder or table"
        raise UserError(
            f"{folder}: {what}; give folders of runs (their train.output), a folder of them, or a table (.csv)"
        )
    return found


def read_run(folder: Path, counted: str = ALL) -> Run:
    """A run with its points; one that is not finished, or diverged, has a point that says why it is dropped.

    counted: `ALL` or `DECODER`.

    Raises:
        UserError: not a run of this release.
    """
    config, lines = _config(folder), _lines(folder)
    from ..codec.geometry import expected_geometry
    from ..model.flops import component_parameters
    from ..objective.build import parameter_table
    from ..plan.estimate import objective_work, sample_flops

    work = objective_work(config).expected(typical_frame(config))
    counts = component_parameters(parameter_table(config), config.model, expected_geometry(config.codec).channels)
    parts = {name: count for name, count in counts.items() if counted == ALL or name.startswith("decoder.")}
    size, batch = float(sum(parts.values())), config.train.global_batch_size * work.tokens
    flops = sample_flops(config, work) * config.train.global_batch_size
    measured = {line["step"]: line for line in lines if LOSS in line}
    # One decay is the end of any schedule.
    ends = decays(config.optimizer, config.train.steps) or [(0, config.train.steps)]
    points = []
    for _, step in ends:
        name = folder.name if len(ends) == 1 else f"{folder.name}@{step}"
        loss, levels, errors, dropped = _measured(measured, step, lines)
        points.append(Point(name, size, step * batch, loss, step, batch, step * flops, levels, dropped, errors))
    curve = [(step * batch, line[LOSS]) for step, line in sorted(measured.items()) if step and line[LOSS] is not None]
    tokens, losses = np.array(curve, float).reshape(-1, 2).T
    return Run(folder, tuple(points), size, tokens, losses, validated_by(config) | _levels(folder, config))


def _measured(
    measured: dict[int, dict[str, Any]], step: int, lines: list[dict[str, Any]]
) -> tuple[float, dict[str, float], dict[str, float], str]:
    """Validation loss after so many steps, those by level, standard errors, and why the point is dropped."""
    line = measured.get(step)
    if line is None:
        last = max((one["step"] for one in lines), default=0)
        why = f"not finished: at step {last} of {step}" if last < step else f"no {LOSS} at step {step} (eval.every)"
        return math.nan, {}, {}, why
    values = {name: math.nan if value is None else float(value) for name, value in line.items() if _of_validation(name)}
    levels = {name.removeprefix("validation_"): value for name, value in values.items() if name.startswith(LEVEL)}
    found = {name: values.get(f"{ERROR}{name}", math.nan) for name in ("loss", *levels)}
    errors = {name: value for name, value in found.items() if math.isfinite(value)}
    before = {at: one[LOSS] for at, one in measured.items() if at < step and one[LOSS] is not None}
    return values[LOSS], levels, errors, why_diverged(values[LOSS], before)


def _of_validation(name: str) -> bool:
    return name.startswith("validation")


def why_diverged(loss: float, before: dict[int, float]) -> str:
    """Why a point is left out because its run diverged; "" where it did not.  before: finite losses by earlier steps.

    The rule: the loss is no finite number, or above `DIVERGED` times the lowest before it.
    """
    if not math.isfinite(loss):
        return f"diverged: {LOSS} is no finite number"
    lowest = min(before, key=lambda step: before[step], default=None)
    if lowest is None or loss <= DIVERGED * before[lowest]:
        return ""
    return (
        f"diverged: {LOSS} {loss:.4g} is above {DIVERGED:g} times its lowest before, "
        f"{before[lowest]:.4g} at step {lowest}"
    )


def check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError where two runs are validated on different sets."""
    for run in runs[1:]:
        first = runs[0]
        for name in sorted(first.validated.keys() | run.validated.keys()):
            one, other = first.validated.get(name), run.validated.get(name)
            if one != other:
                raise UserError(
                    f"{run.folder}: its validation loss is not that of {first.folder}: {name} is {_shown(other)} here "
                    f"and {_shown(one)} there; leave one of them out, or train it again with the same {name}"
                )


def _shown(value: Any) -> str:
    return "not there" if value is None else show(value)


def validated_by(config: Config) -> dict[str, Any]:
    """Every option that a run's validation loss depends on, beside the model."""
    names = [option.name for option in options(of=config)]
    wanted = [name for name in names if name.split(".")[0] in SETS and name not in READING]
    return {name: value_of(config, name) for name in (*wanted, "eval.samples", "eval.levels", "train.seed")}


def _levels(folder: Path, config: Config) -> dict[str, Any]:
    """How noise levels were drawn; runs of earlier releases, whose files do not say, drew them independently."""
    told = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8-sig")).get("eval", {})
    return {"eval.levels": config.eval.levels if "levels" in told else "independent"}


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: has no {CONFIG}, so that its size is not known; give the folder of a run, whole")
    try:
        return load_config(path)
    except ConfigError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        raise UserError(f"{path}: not a run of this release: {error.problems[0]}{more}") from error


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut short by a crash is left out."""
    path = folder / METRICS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise unusable(path, error) from error
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            told = filter(_of_validation, value)
            wrong = next((name for name in told if not isinstance(value[name], (int, float, type(None)))), None)
            if wrong is not None:
                raise UserError(
                    f"{path}: {wrong} at step {value['step']} is {json.dumps(value[wrong])}, not a number; give the "
                    "folder of a run that `train` wrote"
                )
            found.append(value)
    if not found:
        raise UserError(f"{path}: has no line of a run's numbers; give the folder of a run that `train` wrote")
    return found
