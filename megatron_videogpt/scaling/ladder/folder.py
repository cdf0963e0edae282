"""A ladder's folder: its plan, the configuration of each run, and what must not be there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.load import ConfigError, load_config
from ...config.options import options, value_of
from ...config.paths import obstacle
from ...config.schema import Config
from ...config.toml import config_to_toml, show
from ...data.locks import Held, locked
from ...errors import UserError, unusable
from ..runs import CONFIG, METRICS, READING
from ..write import write_file, write_json
from .options import Ladder, as_dict

PLAN, CONFIGS, LOGS, LOCK = "ladder.json", "configs", "logs", ".ladder.lock"
"""Beside the folders of the runs."""

SECTIONS = frozenset({"parallel", "attention", "checkpoint", "sample", "logging"})
OF_MACHINES = READING | frozenset(
    f"train.{name}" for name in "output micro_batch_size platform threads gc_every timeout_minutes".split()
)
"""Sections and options that a run may have changed in its course: where and how it runs, not what it learns."""
DECIDED = ("auto", "condition.width")
"""A value that a run replaces, and an option that it fills in."""


@dataclass(frozen=True)
class Listed:
    """A run as its ladder's folder lists it.

    points: steps after which it has one; seconds: that it should take.
    """

    name: str
    config: Config
    devices: int
    points: tuple[int, ...]
    held_out: bool
    seconds: float

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.train.output)


@contextlib.contextmanager
def ladder_folder(output: Path) -> Iterator[None]:
    """The folder of a ladder, made where there is none; nobody else plans or launches there inside of the block.

    Raises:
        UserError: somebody does, or there can be no such folder.
    """
    blocked = obstacle(output)
    if blocked:
        raise UserError(f"ladder.output = {output}: {blocked}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / LOCK, 1.0, "launching this ladder"):
            yield
    except Held as error:
        raise UserError(
            f"ladder.output = {output}: this ladder is being launched ({error.holder}); wait until that has ended, "
            "see `scaling status`, or use another ladder.output"
        ) from error
    except OSError as error:
        raise unusable(output, error) from error


def config_file(output: Path, name: str) -> Path:
    """The planned configuration of a run."""
    return output / CONFIGS / f"{name}.toml"


def write_plan(output: Path, described: dict[str, Any], configs: dict[str, Config]) -> None:
    """`ladder.json` and a file for each run, whole."""
    (output / CONFIGS).mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        write_file(config_file(output, name), config_to_toml(config))
    write_json(output / PLAN, described)


def read_plan(output: Path) -> tuple[dict[str, Any], list[Listed]]:
    """What `write_plan` wrote.

    Raises:
        UserError: the folder has no plan of this release.
    """
    try:
        described = json.loads((output / PLAN).read_text(encoding="utf-8"))
        runs = [
            Listed(
                run["name"],
                load_config(config_file(output, run["name"])),
                run["devices"],
                tuple(run["points"]),
                run["held_out"],
                run["seconds"] or 0.0,
            )
            for run in described["runs"]
        ]
    except FileNotFoundError as error:
        raise UserError(
            f"{output}: has no {PLAN}, so that it is no ladder's folder; `scaling plan LADDER.toml` makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = error.problems[0] if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{output / PLAN}: not a plan of this release ({line}); plan the ladder again") from error
    return described, runs


def check_folder(output: Path, ladder: Ladder, configs: dict[str, Config]) -> None:
    """Raise UserError, one line, where a run is there that this ladder does not have, or one that began with other
    options.

    configs: of all runs of the ladder, by name.
    """
    changed = _changed_options(output, ladder)
    for folder in sorted(path for path in output.glob("*") if (path / CONFIG).is_file() or (path / METRICS).is_file()):
        if folder.name not in configs:
            raise UserError(
                f"{folder}: is a run that this ladder does not have{_because(changed)}; move it away, undo that, or "
                "use another ladder.output"
            )
        if (folder / CONFIG).is_file():
            found = differences(began_with(folder), configs[folder.name])
            if found:
                more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
                raise UserError(
                    f"{folder}: the ladder has changed since this run began{_because(changed)}: "
                    f"{'; '.join(found[:3])}{more}; undo that, or use another ladder.output"
                )


def began_with(folder: Path) -> Config:
    """The configuration that a run has recorded; UserError where it is none of this release."""
    try:
        return load_config(folder / CONFIG)
    except ConfigError as error:
        raise UserError(f"{folder / CONFIG}: not a run of this release: {error.problems[0]}") from error


def differences(there: Config, here: Config) -> list[str]:
    """Options that decide what a run learns and that differ, with both values."""
    names = [option.name for option in options(of=here)]
    known = {option.name for option in options(of=there)}
    found = []
    for name in names:
        if name.split(".")[0] in SECTIONS or name in OF_MACHINES:
            continue
        one, other = value_of(there, name) if name in known else None, value_of(here, name)
        if one != other and other != DECIDED[0] and name != DECIDED[1]:
            found.append(f"{name} is {show(one)} there and {show(other)} in the plan")
    return found


def _changed_options(output: Path, ladder: Ladder) -> list[str]:
    """Options of the ladder that differ from those of the plan that is there."""
    try:
        before = json.loads((output / PLAN).read_text(encoding="utf-8"))["ladder"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    now = json.loads(json.dumps(as_dict(ladder)))
    return [f"ladder.{name}" for name in now if isinstance(before, dict) and before.get(name) != now[name]]


def _because(changed: Sequence[str]) -> str:
    return f" (changed in the plan: {', '.join(changed)})" if changed else ""
