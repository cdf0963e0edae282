"""`scaling run`, from its arguments to the table at its end."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.live import Live

from ...config.check_data import missing_paths, unusable_output
from ...config.load import ConfigError
from .cost import launch_order
from .folder import config_file, ladder_folder, read_plan
from .launch import Job, Launcher, command_of
from .made import Plan, make_plan, record
from .plan_report import console_of, fit_command, remarks
from .state import DIVERGED, FINISHED, RUNNING, state_of
from .status_report import status_table

STARTING = "starting"


def run_ladder(args: argparse.Namespace) -> int:
    """Plan again, launch what is left, and tell how it ended: 0 where every run is over, 1 where one was given up."""
    plan = make_plan(args)
    given = {"at_once": args.at_once, "retries": args.retries}
    ladder = replace(plan.ladder, **{name: value for name, value in given.items() if value is not None})
    plan = replace(plan, ladder=ladder)
    console = console_of()
    with ladder_folder(plan.output):
        record(plan)
        jobs = _jobs(plan)
        with _shown(console, jobs) as (tell, show):
            launcher = Launcher(plan.output, ladder, jobs, tell)
            ended = launcher.go(show, args.minutes)
        if not console.is_terminal:
            console.print(_table(jobs))
    return _tell_end(console, plan, jobs, ended, args.minutes)


def _jobs(plan: Plan) -> list[Job]:
    """Every run that is launched, in order; ConfigError where one could not begin."""
    _, listed = read_plan(plan.output)
    by_name = {run.name: run for run in listed}
    first = plan.kept[0].run.config
    problems = missing_paths(first) + unusable_output(first)
    if problems:
        raise ConfigError(problems)
    runs = [by_name[one.run.name] for one in launch_order(plan.kept, plan.ladder)]
    command_of(runs[0], plan.ladder, config_file(plan.output, runs[0].name))
    return [Job(run, state_of(run)) for run in runs]


@contextmanager
def _shown(console: Any, jobs: list[Job]) -> Iterator[tuple[Any, Any]]:
    """(what a line is given to, what shows the table): a live table on a terminal, lines elsewhere."""

    def tell(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield tell, lambda: None
        return
    with Live(_table(jobs), console=console, refresh_per_second=2) as live:
        yield tell, lambda: live.update(_table(jobs))


def _table(jobs: list[Job]) -> Any:
    notes = {job.run.name: f"given up: {job.failed}" for job in jobs if job.failed}
    states = [
        # Before it has the lock of its folder.
        replace(job.state, kind=STARTING) if job.process is not None and job.state.kind != RUNNING else job.state
        for job in jobs
    ]
    return status_table([(job.run, state) for job, state in zip(jobs, states)], notes)


def _tell_end(console: Any, plan: Plan, jobs: list[Job], ended: bool, minutes: float) -> int:
    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    left = sum(job.state.kind not in (FINISHED, DIVERGED) for job in jobs)
    for job in jobs:
        if job.state.kind == DIVERGED:
            say(f"{job.run.name} is left out: {job.state.why}")
    if not ended:
        say(f"stopped after {minutes:g} minutes, {left} runs to go; the same command goes on")
        return 0
    if any(job.failed for job in jobs):
        say(f"{left} runs were given up; their output is in {plan.output / 'logs'}, and the same command tries again")
        return 1
    for line in remarks(plan):
        if line.startswith(("left out", "held out")):
            say(line)
    say(f"all runs are over; next: {fit_command(plan)}")
    return 0
