"""What people expect of a repository agrees with the project: containers, CI, citation, versions, pages."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_videogpt.config.load import tomllib
from tools.compare_runs import difference, read_run, table

REPOSITORY = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
DOCKERFILES = sorted((REPOSITORY / "docker").glob("Dockerfile.*"))


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    return tomllib.loads(text("pyproject.toml"))["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of a Dockerfile, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def test_workflows_run_the_same_as_everybody() -> None:
    workflows = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 90
            steps = job["steps"]
            assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
            assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]


def test_forms_for_issues() -> None:
    forms = {path.name: yaml.safe_load(path.read_text()) for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").iterdir()}
    assert set(forms) == {"bug.yml", "question.yml", "gpu_report.yml", "npu_report.yml", "config.yml"}
    del forms["config.yml"]
    for form in forms.values():
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 0
    # The file that the form asks for is the one that the tool writes.
    for kind in ("gpu", "npu"):
        assert f"runs/{kind}_check/summary.md" in text(f".github/ISSUE_TEMPLATE/{kind}_report.yml")
        assert f'"runs" / "{kind}_check"' in text(f"tools/{kind}_check.py")
    assert '"summary.md"' in text("tools/gpu_check.py")


def test_citation() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert f'__version__ = "{citation["version"]}"' in text("megatron_videogpt/version.py")
    assert citation["license"] == project()["license"] == "MIT"
    assert [author["name"] for author in citation["authors"]] == ["The megatron_videogpt authors"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_versions_of_python_agree() -> None:
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project()["classifiers"]))
    rows = dict(re.findall(r"^\| (3\.\d+) \| (.+?) \|", text("docs/installing.md"), re.MULTILINE))
    assert list(rows) == declared
    assert project()["requires-python"] == f">={declared[0]}"
    tested = [version for version, answer in rows.items() if "yes" in answer]
    (job,) = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"].values()
    (asked,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert tested == [asked], "the table says that a Python is tested which CI does not run"


def test_uv_takes_the_cpu_index_for_torch_alone() -> None:
    uv = tomllib.loads(text("pyproject.toml"))["tool"]["uv"]
    (index,) = uv["index"]
    assert index["explicit"] and index["url"] == "https://download.pytorch.org/whl/cpu"
    assert uv["sources"] == {"torch": [{"index": index["name"], "extra": "cpu"}]}
    assert "cpu" in project()["optional-dependencies"]


def test_who_develops_has_what_the_extras_bring() -> None:
    """Of scenes, hub and demo, word by word; a platform's own extras are not everybody's."""
    extras = project()["optional-dependencies"]
    assert set(extras["dev"]) >= {*extras["scenes"], *extras["hub"], *extras["demo"], *extras["tables"]}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles(path: Path) -> None:
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    base = next(rest for name, rest in found if name == "FROM")
    assert re.search(r":[\w.${}-]+$", base) and ":latest" not in base
    ignored = [line.rstrip("/") for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]
    for name, rest in found:
        if name == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (REPOSITORY / source).exists(), f"COPY {source}: there is no such file"
                assert source.split("/")[0] not in ignored


def test_the_cpu_image_is_not_root_and_the_other_keeps_its_torch() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.ngc"]
    cpu, ngc = map(instructions, DOCKERFILES)
    assert [rest for name, rest in cpu if name == "USER"] == ["1000"]
    assert ("ENTRYPOINT", '["python", "-m", "megatron_videogpt"]') in cpu
    installs = [rest for name, rest in ngc if name == "RUN" and "pip install" in rest]
    assert installs and all("--constraint /tmp/held.txt" in rest and "keep_builds.py same" in rest for rest in installs)


def test_held_builds_are_noticed_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "held.txt"
    command = [sys.executable, str(REPOSITORY / "docker/keep_builds.py")]
    assert subprocess.run([*command, "hold", str(file)], check=False).returncode == 0
    held = file.read_text()
    assert re.search(r"^torch==", held, re.MULTILINE) and "megatron" not in held
    assert subprocess.run([*command, "same", str(file)], check=False).returncode == 0
    file.write_text(re.sub(r"^torch==.+$", "torch==1.0", held, flags=re.MULTILINE))
    changed = subprocess.run([*command, "same", str(file)], capture_output=True, text=True, check=False)
    assert changed.returncode == 1 and "torch==1.0" in changed.stderr


def test_the_page_for_agents_is_short_and_true() -> None:
    page = text("AGENTS.md")
    assert len(page.splitlines()) <= 80
    named = re.findall(r"[\w./-]+/[\w./-]*|\b[A-Z]+\.md|[\w-]+\.(?:py|md|toml|sh)\b", page)
    inside = (REPOSITORY, REPOSITORY / "megatron_videogpt/platforms")
    missing = [name for name in named if not any((root / name).exists() for root in inside)]
    assert named and missing == []


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_the_pages_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", text(page))
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def write_run(folder: Path, losses: dict[int, float | None]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses.items()]
    # A line without the loss, and one that a crash has cut.
    lines += [json.dumps({"step": 2, "validation_loss": 1.0}), '{"step": 3, "lo']
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_compared_runs(tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path / "one", {1: 2.0, 2: 1.0}), "loss")
    two = read_run(write_run(tmp_path / "two", {1: 2.0, 2: 1.25}), "loss")
    lines, worst = table({"one": one, "two": two}, every=1)
    assert worst == {"two": (0.25, 2)}
    assert [line.split() for line in lines] == [
        ["step", "one", "two", "difference"],
        ["1", "2.00000000", "2.00000000", "0.0e+00"],
        ["2", "1.00000000", "1.25000000", "2.5e-01"],
    ]
    assert difference(float("nan"), 1.0) == difference(1.0, float("nan")) == float("inf")


@pytest.mark.parametrize(
    "losses, options, code, said",
    [
        ({1: 2.0, 2: 1.0 + 1e-6}, ["--bound", "1e-5"], 0, "within the bound"),
        ({1: 2.0, 2: 1.1}, ["--bound", "1e-5"], 1, "1.0e-01 (step 2), ABOVE the bound"),
        ({1: 2.0, 2: None}, ["--bound", "1e-5"], 1, "inf (step 2), ABOVE the bound"),
        ({1: 2.0}, [], 2, "step 2 is in one alone"),
        ({1: 2.0, 2: 1.0}, ["--metric", "lose"], 2, "no step has 'lose'; it has loss, validation_loss"),
        (None, [], 2, "there is no metrics.jsonl"),
    ],
)
def test_command_that_compares_runs(
    losses: dict[int, float | None] | None,
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tools import compare_runs

    write_run(tmp_path / "one", {1: 2.0, 2: 1.0})
    if losses is not None:
        write_run(tmp_path / "two", losses)
    runs = [f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}"]
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *runs, *options])
    assert compare_runs.main() == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert len(printed.err.splitlines()) == (1 if code == 2 else 0)


@pytest.mark.parametrize("arguments, code", [(["--help"], 0), (["parallel.tensor=1"], 2), (["twice"], 2)])
def test_the_parallel_quickstart_explains_itself(arguments: list[str], code: int) -> None:
    command = ["bash", "examples/parallel_quickstart.sh", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "usage: bash examples/parallel_quickstart.sh" in done.stdout or done.stderr.startswith("error: ")
