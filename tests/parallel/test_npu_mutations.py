"""Each of these mistakes in what starts on NPUs fails a test: the project with one line changed, and the test that
notices.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from .launch import REPOSITORY, environment_of

PLATFORMS = "megatron_videogpt/platforms"
STARTS = "tests/unit/test_npu_start.py"
MINDSPEED = f"{STARTS}::test_start_with_mindspeed"


class Mutation(NamedTuple):
    """A line of a file, what it becomes, and the test that fails then."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "the device of RANK",
        f"{PLATFORMS}/npu.py",
        'text = environment.get("LOCAL_RANK")',
        'text = environment.get("RANK")',
        f"{STARTS}::test_a_process_takes_the_device_of_its_place_on_the_node",
    ),
    Mutation(
        "one device too many",
        f"{PLATFORMS}/npu.py",
        "int(text) >= count",
        "int(text) > count",
        f"{STARTS}::test_a_device_that_is_not_there",
    ),
    Mutation(
        "saturation is not looked for",
        f"{PLATFORMS}/npu.py",
        'environment.get(SATURATION, "1") == "0"',
        'environment.get(SATURATION, "1") == "off"',
        f"{STARTS}::test_overflow_must_not_saturate",
    ),
    Mutation(
        "no device is set before the adaptor",
        f"{PLATFORMS}/npu.py",
        "        torch.npu.set_device(index)\n",
        "",
        MINDSPEED,
    ),
    Mutation(
        "every shape is compiled",
        f"{PLATFORMS}/npu.py",
        "set_compile_mode(jit_compile=False)",
        "set_compile_mode(jit_compile=True)",
        MINDSPEED,
    ),
    Mutation(
        "internal formats stay as they are",
        f"{PLATFORMS}/npu.py",
        "    torch.npu.config.allow_internal_format = False\n",
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
        "log files are closed",
        f"{PLATFORMS}/surroundings.py",
        "        handler.close = lambda: None  # type: ignore[method-assign]\n",
        "        handler.close = handler.close\n",
        MINDSPEED,
    ),
    Mutation(
        "loggers stay silent",
        f"{PLATFORMS}/surroundings.py",
        "            logger.disabled = disabled\n",
        "            pass\n",
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
        f"{STARTS}::test_detection_goes_on_where_torch_npu_cannot_be_imported",
    ),
    Mutation(
        "the optimizer meets torch.npu.FloatTensor",
        f"{PLATFORMS}/npu_adaptor.py",
        "    torch.Tensor.type = _named_cuda(torch.Tensor.type)  # type: ignore[method-assign]\n",
        "",
        f"{STARTS}::test_start_with_torch_npu_alone",
    ),
    Mutation(
        "megatron-core finds no generator",
        f"{PLATFORMS}/npu_adaptor.py",
        "    torch.cuda.default_generators = torch.npu.default_generators\n",
        "",
        f"{STARTS}::test_start_with_torch_npu_alone",
    ),
    Mutation(
        "nothing is transferred for the successor",
        f"{PLATFORMS}/npu_adaptor.py",
        'importlib.import_module("torch_npu.contrib.transfer_to_npu")',
        "pass",
        f"{STARTS}::test_start_with_its_successor",
    ),
    Mutation(
        "another CANN passes",
        f"{PLATFORMS}/npu_versions.py",
        'zip(("torch", "CANN"), ROWS[mine])',
        'zip(("torch",), ROWS[mine])',
        f"{STARTS}::test_versions_that_do_not_belong_together",
    ),
    Mutation(
        "attention is built by position",
        "megatron_videogpt/model/self_attention.py",
        "super().__init__(config=config, **kwargs)",
        "super().__init__(config, **kwargs)",
        "tests/unit/test_platforms.py::test_layers_can_be_wrapped_as_mindspeed_does",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, to be changed."""
    folder = tmp_path_factory.mktemp("mutated") / "project"
    for name in ("megatron_videogpt", "tests", "tools"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "tests" / "golden").symlink_to(REPOSITORY / "tests" / "golden")
    return folder


def outcome(folder: Path, test: str) -> int:
    """pytest's exit code of one test there."""
    env = environment_of(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", test]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=600).returncode


@pytest.mark.long
def test_without_a_mistake_they_pass(copy: Path) -> None:
    assert outcome(copy, STARTS) == outcome(copy, "tests/unit/test_platforms.py") == 0


def test_every_line_is_there_once() -> None:
    for one in MUTATIONS:
        assert (REPOSITORY / one.file).read_text(encoding="utf-8").count(one.old) == 1, one.name
    assert len(MUTATIONS) == len({one.name for one in MUTATIONS}) >= 12


@pytest.mark.long
@pytest.mark.parametrize("one", MUTATIONS, ids=lambda one: one.name)
def test_a_mistake_fails_its_test(one: Mutation, copy: Path) -> None:
    file = copy / one.file
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(one.old, one.new), encoding="utf-8")
    try:
        assert outcome(copy, one.test) == 1
    finally:
        file.write_text(before, encoding="utf-8")
