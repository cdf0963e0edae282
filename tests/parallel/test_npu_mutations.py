"""Each of these mistakes in what starts on NPUs fails a test: the project with one line changed, and the test that
notices.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_videogpt.errors import UserError
from megatron_videogpt.platforms import npu, npu_versions
from tests import npu_runs
from tests.unit import test_npu_adaptor as adaptors
from tests.unit import test_npu_start as starts
from tests.unit.test_npu_mutations import mutated

from .launch import REPOSITORY, environment_of

PLATFORMS = "megatron_videogpt/platforms"
Test = Callable[[Path], None]


def of_its_place(_folder: Path) -> None:
    starts.test_a_process_takes_the_device_of_its_place_on_the_node(1, 0)


def of_a_device_too_many(_folder: Path) -> None:
    starts.test_a_device_that_is_not_there({"LOCAL_RANK": "8", "RANK": "8"}, 8, "LOCAL_RANK=8 but this machine shows 8")


def of_saturation(_folder: Path) -> None:
    starts.test_overflow_must_not_saturate()


def of_another_cann(_folder: Path) -> None:
    line = "CANN 8.5.0: torch_npu 2.7.1.post4 is for CANN 9.0.0"
    adaptors.test_versions_that_do_not_belong_together({"CANN": "8.5.0"}, "own", [line])


HERE: dict[Test, str] = {of_its_place: "npu", of_a_device_too_many: "npu", of_saturation: "npu"}
HERE[of_another_cann] = "npu_versions"
"""Tests of pure functions -> the module whose text is changed."""
MINDSPEED = starts.test_start_with_mindspeed


class Mutation(NamedTuple):
    """A line of a file, what it becomes, and the test that fails then."""

    name: str
    file: str
    old: str
    new: str
    test: Test


MUTATIONS = (
    Mutation(
        "the device of RANK",
        f"{PLATFORMS}/npu.py",
        'text = environment.get("LOCAL_RANK")',
        'text = environment.get("RANK")',
        of_its_place,
    ),
    Mutation(
        "one device too many",
        f"{PLATFORMS}/npu.py",
        "int(text) >= count",
        "int(text) > count",
        of_a_device_too_many,
    ),
    Mutation(
        "saturation is not looked for",
        f"{PLATFORMS}/npu.py",
        'environment.get(SATURATION, "1") == "0"',
        'environment.get(SATURATION, "1") == "off"',
        of_saturation,
    ),
    Mutation(
        "no device is set before the adaptor",
        f"{PLATFORMS}/npu.py",
        "        torch.npu.set_device(index)\n",
        "",
        MINDSPEED,
    ),
    Mutation(
        "products in HF32",
        f"{PLATFORMS}/npu.py",
        "torch.npu.matmul.allow_hf32 = False",
        "torch.npu.matmul.allow_hf32 = True",
        MINDSPEED,
    ),
    Mutation("another backend", f"{PLATFORMS}/npu.py", 'backend="hccl"', 'backend="gloo"', MINDSPEED),
    Mutation(
        "the adaptor parses our command line",
        f"{PLATFORMS}/surroundings.py",
        "sys.argv, sys.argv[:1]",
        "sys.argv, sys.argv[:]",
        MINDSPEED,
    ),
    Mutation(
        "the command line stays cut",
        f"{PLATFORMS}/surroundings.py",
        "        sys.argv = before\n",
        "        pass\n",
        MINDSPEED,
    ),
    Mutation(
        "log files end",
        f"{PLATFORMS}/surroundings.py",
        "        root.handlers[:] = handlers\n",
        "",
        MINDSPEED,
    ),
    Mutation(
        "warning filters are lost",
        f"{PLATFORMS}/surroundings.py",
        "with warnings.catch_warnings(record=True) as caught:",
        "with contextlib.nullcontext([]) as caught:",
        MINDSPEED,
    ),
    Mutation(
        "detection ends where torch_npu does",
        f"{PLATFORMS}/__init__.py",
        "except (ImportError, RuntimeError) as error",
        "except OSError as error",
        starts.test_detection_goes_on_where_torch_npu_cannot_be_imported,
    ),
    Mutation(
        "the optimizer meets torch.npu.FloatTensor",
        f"{PLATFORMS}/npu_adaptor.py",
        "    torch.Tensor.type = _named_cuda(torch.Tensor.type)  # type: ignore[method-assign]\n",
        "",
        starts.test_start_with_torch_npu_alone,
    ),
    Mutation(
        "nothing is transferred for the successor",
        f"{PLATFORMS}/npu_adaptor.py",
        'importlib.import_module("torch_npu.contrib.transfer_to_npu")',
        "pass",
        starts.test_start_with_its_successor,
    ),
    Mutation(
        "another CANN passes",
        f"{PLATFORMS}/npu_versions.py",
        'zip(("torch", "CANN"), ROWS[mine])',
        'zip(("torch",), ROWS[mine])',
        of_another_cann,
    ),
)

ATTENTION = "megatron_videogpt/model/self_attention.py", "super().__init__(config=config, **kwargs)"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, to be changed."""
    folder = tmp_path_factory.mktemp("mutated") / "project"
    for name in ("megatron_videogpt", "tests", "tools"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "tests" / "golden").symlink_to(REPOSITORY / "tests" / "golden")
    return folder


@pytest.fixture()
def started_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tests start are of that copy."""
    monkeypatch.setattr(npu_runs, "REPOSITORY", copy)
    monkeypatch.setattr(npu_runs, "PACKAGES", copy / "tests" / "ascend" / "packages")
    monkeypatch.setattr(starts, "REPOSITORY", copy)


def test_every_line_is_there_once() -> None:
    changed = [*((one.file, one.old) for one in MUTATIONS), ATTENTION]
    assert all((REPOSITORY / file).read_text(encoding="utf-8").count(old) == 1 for file, old in changed)
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS) >= 12


@pytest.mark.parametrize("one", [one for one in MUTATIONS if one.test in HERE], ids=lambda one: one.name)
def test_a_mistake_in_a_function_fails_its_test(one: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one.test(tmp_path)
    tests, module = {"npu": (starts, npu), "npu_versions": (adaptors, npu_versions)}[HERE[one.test]]
    monkeypatch.setattr(tests, HERE[one.test], mutated(module, one.old, one.new))
    with pytest.raises((AssertionError, UserError, pytest.fail.Exception)):
        one.test(tmp_path)


@pytest.mark.long
@pytest.mark.usefixtures("started_there")
def test_without_a_mistake_it_starts(tmp_path: Path) -> None:
    """`tests/unit/test_npu_start.py` shows the others."""
    MINDSPEED(tmp_path)


@pytest.mark.long
@pytest.mark.usefixtures("started_there")
@pytest.mark.parametrize("one", [one for one in MUTATIONS if one.test not in HERE], ids=lambda one: one.name)
def test_a_mistake_in_the_start_fails_its_test(one: Mutation, copy: Path, tmp_path: Path) -> None:
    file = copy / one.file
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(one.old, one.new), encoding="utf-8")
    try:
        with pytest.raises(AssertionError):
            one.test(tmp_path)
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.mark.long
def test_attention_built_by_position_fails_its_test(copy: Path) -> None:
    """It wraps megatron-core's class, which a process has once."""
    file, old = copy / ATTENTION[0], ATTENTION[1]
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(old, old.replace("config=config", "config")), encoding="utf-8")
    env = environment_of(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    test = "tests/unit/test_platforms.py::test_layers_can_be_wrapped_as_mindspeed_does"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", test]
    try:
        assert subprocess.run(command, cwd=copy, env=env, capture_output=True, timeout=600).returncode == 1
    finally:
        file.write_text(before, encoding="utf-8")
