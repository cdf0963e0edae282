"""Objectives of other distributions: found by their entry point, with their own options, rules and axes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megatron_videogpt.config.sections import AXES, enter

OPTIONS = '''
from dataclasses import dataclass

from megatron_videogpt.config.sections import enter, option


@dataclass(frozen=True)
class Options:
    """Of an objective."""

    name: str = option("outside", "objective")
    depth: int = option(3, "levels")


def rules(report):
    report.check_range("at least 1", lambda v: v >= 1, "objective.depth")


enter("objective", "outside", Options, rules, __package__, axes=frozenset({"tensor"}))
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed distribution: a package with options, and its entry point."""
    package, dist = tmp_path / "outside_objective", tmp_path / "outside_objective-1.0.dist-info"
    package.mkdir()
    dist.mkdir()
    (package / "__init__.py").write_text("")
    (package / "options.py").write_text(OPTIONS)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-objective\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text("[megatron_videogpt.objectives]\noutside = outside_objective\n")
    return tmp_path


def python(site: Path, program: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(Path(__file__).resolve().parents[2])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_an_objective_of_another_distribution_is_one_of_ours(site: Path) -> None:
    result = python(
        site,
        """
        import megatron_videogpt
        from megatron_videogpt.config import sections
        from megatron_videogpt.config.check import find_problems
        from megatron_videogpt.config.load import config_from_dict

        print(sections.names("objective"), sections.find("objective", "outside").package)
        layout = {"tensor": 2, "context": 2, "sequence": True}
        values = {"objective": {"name": "outside", "depth": 0}, "parallel": layout}
        for problem in find_problems(config_from_dict(values), None):
            print(problem)
        try:
            config_from_dict({"objective": {"name": "outside", "clean_retention": 0.5}})
        except ValueError as error:
            print(error)
        """,
    )
    assert result.returncode == 0, result.stderr
    first, *problems = result.stdout.splitlines()
    ours = "'next_clip_diffusion', 'frame_prompt_diffusion', 'next_block_prediction', 'tokenizer'"
    assert first == f"({ours}, 'outside') outside_objective", "the default stays the default"
    assert problems == [
        "parallel.context = 2: must be 1 with objective.name = outside, whose network does not split over it; use "
        "parallel.context=1",
        "parallel.sequence = true: must be false with objective.name = outside, whose network does not split over it; "
        "use parallel.sequence=false",
        "objective.depth = 0: must be at least 1; use for example 3 (levels)",
        next(line for line in problems if "clean_retention" in line),
    ]


def test_one_that_cannot_be_imported_is_named(site: Path) -> None:
    (site / "outside_objective" / "options.py").write_text("import a_package_that_is_missing\n")
    result = python(site, "import megatron_videogpt")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "megatron_videogpt.errors.UserError: objective 'outside' of outside-objective: outside_objective.options "
        "cannot be used (No module named 'a_package_that_is_missing'); mend it, or remove it with pip uninstall "
        "outside-objective"
    )


def test_a_name_that_is_taken_is_no_longer_free(site: Path) -> None:
    options = OPTIONS.replace('enter("objective", "outside"', 'enter("objective", "next_clip_diffusion"')
    (site / "outside_objective" / "options.py").write_text(options)
    last = python(site, "import megatron_videogpt").stderr.splitlines()[-1]
    assert "objective 'outside' of outside-objective: " in last and "'next_clip_diffusion' is entered twice" in last


def test_axes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"axes \['expert'\] are unknown; there are \['context', "):
        enter("objective", "new", object, lambda report: None, axes=AXES | {"expert"})
