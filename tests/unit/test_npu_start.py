"""Starting on Ascend NPUs, over stand-ins for torch_npu and the adaptors, each case a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_videogpt.errors import UserError
from megatron_videogpt.platforms import npu
from tests.npu_runs import HAS, REPOSITORY, search_path
from tests.parallel.launch import environment_of

LATE = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""torch_npu is imported by its name, not by `import torch`."""


def start(folder: Path, case: dict[str, Any], has: tuple[str, ...] = HAS, **environment: str) -> dict[str, Any]:
    env = environment_of(**{"PYTHONPATH": search_path(*has), "PYTHONWARNINGS": "", **environment})
    command = [sys.executable, "-m", "tests.npu_start", json.dumps(case), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    seen["screen"] = done.stderr
    return seen


@pytest.mark.parametrize("node", range(3))
@pytest.mark.parametrize("local", range(8))
def test_a_process_takes_the_device_of_its_place_on_the_node(node: int, local: int) -> None:
    said = {"RANK": 8 * node + local, "LOCAL_RANK": local, "WORLD_SIZE": 24, "GROUP_RANK": node, "LOCAL_WORLD_SIZE": 8}
    assert npu.device_index({name: str(value) for name, value in said.items()}, 8) == local


@pytest.mark.parametrize(
    "environment, count, said",
    [
        ({"LOCAL_RANK": "8", "RANK": "8"}, 8, "LOCAL_RANK=8 but this machine shows 8 NPUs, 0 to 7; start at most"),
        ({"LOCAL_RANK": "-1"}, 8, "LOCAL_RANK=-1 but this machine shows 8 NPUs"),
        ({"LOCAL_RANK": "two"}, 8, "LOCAL_RANK=two but"),
        ({"LOCAL_RANK": "2", "ASCEND_RT_VISIBLE_DEVICES": "6,7"}, 2, "shows 2 NPUs (ASCEND_RT_VISIBLE_DEVICES=6,7)"),
        ({"RANK": "3", "WORLD_SIZE": "8"}, 8, "WORLD_SIZE=8 but LOCAL_RANK is not set"),
        ({}, 0, "this machine shows no NPU; npu-smi info"),
    ],
)
def test_a_device_that_is_not_there(environment: dict[str, str], count: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        npu.device_index(environment, count)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_one_process_needs_no_launcher() -> None:
    assert npu.device_index({}, 1) == npu.device_index({"RANK": "0", "WORLD_SIZE": "1"}, 8) == 0


def test_overflow_must_not_saturate() -> None:
    npu.check_saturation({"INF_NAN_MODE_ENABLE": "1"})
    for environment, keeps in (({"INF_NAN_MODE_ENABLE": "0"}, True), ({}, False)):
        with pytest.raises(UserError, match="broken gradients would not be noticed; (unset|train on A2)"):
            npu.check_saturation(environment, keeps)


@pytest.mark.parametrize("said", [True, False, None])
def test_a_torch_npu_that_does_not_say_whether_it_saturates(said: bool | None) -> None:
    utils = SimpleNamespace() if said is None else SimpleNamespace(is_support_inf_nan=lambda: said)
    assert npu.keeps_inf(SimpleNamespace(npu=SimpleNamespace(utils=utils))) is said


ORDER = """torch_npu
set_device 5
set_compile_mode jit_compile=False
config.allow_internal_format=False
matmul.allow_hf32=False
conv.allow_hf32=True
transfer_to_npu""".splitlines()
CHANGED = "{0}: argv program\n{0}: changes megatron-core"


def check_started(seen: dict[str, Any], adaptor: str) -> None:
    """All that a start does, in its order, and what is left of it."""
    assert "error" not in seen, seen["error"]
    module = {"mindspeed": "mindspeed.megatron_adaptor"}.get(adaptor, adaptor)
    changes = [] if adaptor == "own" else CHANGED.format(module).splitlines()
    assert seen["events"] == [*ORDER, *changes, "megatron.core after megatron.core"], seen["events"]
    assert (seen["name"], seen["device"], seen["backend"]) == ("npu", "npu:5", "hccl")
    assert seen["options"] == [False, True, False]
    assert seen["argv before"] == seen["argv after"] and len(seen["argv after"]) == 4
    assert seen.get("filter") == "held"
    log = seen["log"]
    for line in ("start: host", "megatron_videogpt.before: still here", "UserWarning: seen in the log"):
        assert log.count(line) == 1, (line, log)
    assert f"NPU 5 of 8: Ascend910B2; adaptor {adaptor} (" in log
    for text in ("torch_npu 2.7.1.post4", "CANN 9.0.0", "megatron-core 0.16.1", "numpy ", "Python 3."):
        assert f"versions: {text}" in log or f", {text}" in log
    # Noise of imports is in the log alone.
    assert "while that was imported: ImportWarning: torch.cuda.*" in log and "ImportWarning" not in seen["screen"]
    # This machine's torch is another one than that wheel's.
    assert "WARNING megatron_videogpt.platforms.npu: torch 2.13" in log or "torch 2.7.1" in log
    assert "WARNING" in seen["screen"] or "torch 2.7.1" in log


WORDS = ["train", "tiny.toml", "--traceback"]
"""`--traceback` would end MindSpeed's parser, here and in its stand-in: theirs takes a value."""


def test_start_with_mindspeed(tmp_path: Path) -> None:
    case = {"words": WORDS, "platform": "auto"}
    seen = start(tmp_path, case, LOCAL_RANK="5", RANK="13", WORLD_SIZE="16")
    check_started(seen, "mindspeed")
    assert "the first that is installed and made for megatron-core 0.16.1" in seen["log"]
    assert ("mindspeed 0.16.0" in seen["log"]) and seen["autoload"] == "1"


def test_start_with_its_successor(tmp_path: Path) -> None:
    seen = start(
        tmp_path,
        {"words": WORDS, "adaptor": "megatron_adaptor"},
        ("torch_npu", "megatron_adaptor", "einops"),
        LOCAL_RANK="5",
        **LATE,
    )
    check_started(seen, "megatron_adaptor")


@pytest.mark.long
@pytest.mark.parametrize("option", ["auto", None])
def test_start_with_what_the_environment_names(option: str | None, tmp_path: Path) -> None:
    """Where MindSpeed would be taken, and cannot start."""
    case = {"words": WORDS, "adaptor": option, "missing": ["triton"]}
    seen = start(tmp_path, case, LOCAL_RANK="5", MVG_ADAPTOR="own", **LATE)
    check_started(seen, "own")
    assert "adaptor own (as MVG_ADAPTOR says)" in seen["log"]


def test_start_with_torch_npu_alone(tmp_path: Path) -> None:
    seen = start(tmp_path, {"words": WORDS}, ("torch_npu",), LOCAL_RANK="5", **LATE)
    check_started(seen, "own")
    assert "mindspeed is not installed; megatron_adaptor is not installed" in seen["log"]
    # By the first the distributed optimizer sorts parameters, in the second it looks for a device's generator.
    assert seen["type"] == "torch.cuda.FloatTensor" and seen["generators"] == 8


def test_detection_goes_on_where_torch_npu_cannot_be_imported(tmp_path: Path) -> None:
    seen = start(tmp_path, {"platform": "auto"}, STAND_IN_CANN="", **LATE)
    assert seen["name"] == "cpu" and "going on without NPUs: libhccl.so: cannot open" in seen["log"]


def test_a_command_says_that_cann_is_missing(tmp_path: Path) -> None:
    """`import torch` itself fails then."""
    command = [sys.executable, "-m", "megatron_videogpt", "train", "tests/parallel/tiny.toml", "train.platform=npu"]
    env = environment_of(PYTHONPATH=search_path(*HAS), STAND_IN_CANN="")
    done = subprocess.run(
        [*command, f"train.output={tmp_path / 'run'}"], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: importing torch loads torch_npu, which fails (libhccl.so")
    assert "source CANN's set_env.sh" in line and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in line


@pytest.mark.long
@pytest.mark.parametrize(
    "case, has, environment, said",
    [
        ({}, HAS, {"STAND_IN_CANN": "", **LATE}, "cannot be imported (libhccl.so: cannot open shared object file"),
        ({}, HAS, {"STAND_IN_CANN": "", **LATE}, "source /usr/local/Ascend/cann/set_env.sh (before CANN 9: "),
        ({}, (), {}, "the package torch_npu is missing; pip install"),
        ({"cuda": True}, HAS, LATE, "is a CUDA build, beside which torch_npu cannot be imported; install the CPU"),
        ({"missing": ["triton"]}, HAS, {}, "imports the package triton, which is missing; pip install triton-ascend"),
        ({"missing": ["einops"]}, HAS, {}, "imports the package einops, which is missing; pip install einops"),
        ({"missing": ["einops"], "adaptor": None}, HAS, {}, "pip install einops, or use MVG_ADAPTOR=own"),
        ({}, HAS, {"MVG_ADAPTOR": "transfer"}, "MVG_ADAPTOR=transfer: expected auto or one of mindspeed"),
        ({"adaptor": "mindspeed"}, ("torch_npu",), {}, "the package mindspeed is missing; check out branch core_r0"),
        ({}, HAS, {"LOCAL_RANK": "8"}, "LOCAL_RANK=8 but this machine shows 8 NPUs, 0 to 7"),
        ({}, HAS, {"STAND_IN_NPUS": "0"}, "this machine shows no NPU; npu-smi info"),
        ({}, HAS, {"INF_NAN_MODE_ENABLE": "0"}, "INF_NAN_MODE_ENABLE=0: overflow would saturate"),
        ({}, HAS, {"STAND_IN_SERIES": "Ascend910A"}, "this NPU saturates overflow"),
        ({"adaptor": "own"}, HAS, {"STAND_IN_TORCH_NPU": "2.7.1"}, "needs torch_npu 2.7.1.post4 or newer"),
        (
            {"adaptor": "megatron_adaptor", "missing": ["einops"]},
            ("torch_npu", "megatron_adaptor"),
            {},
            "train.adaptor=megatron_adaptor: it cannot be imported (import of einops halted",
        ),
    ],
)
def test_one_line_that_says_what_to_do(
    case: dict[str, Any], has: tuple[str, ...], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    seen = start(tmp_path, case, has, **environment)
    assert said in seen["error"] and "\n" not in seen["error"]
    # What was imported before the mistake was found has changed nothing around it.
    assert seen["filter"] == "held" and seen["log"].count("still here") == 1
    assert seen["argv before"] == seen["argv after"]


@pytest.mark.long
def test_transferred_by_the_environment(tmp_path: Path) -> None:
    """Newer releases do it as they are imported."""
    seen = start(tmp_path, {}, ("torch_npu",), TORCH_TRANSFER_TO_NPU="1", LOCAL_RANK="1")
    assert seen["events"][:3] == ["torch_npu", "transfer_to_npu", "set_device 1"]
    assert seen["events"].count("transfer_to_npu") == 1 and seen["filter"] == "held"


@pytest.mark.long
def test_visible_devices_are_numbered_anew(tmp_path: Path) -> None:
    seen = start(
        tmp_path, {}, ("torch_npu",), ASCEND_RT_VISIBLE_DEVICES="6,7", LOCAL_RANK="1", RANK="9", WORLD_SIZE="10"
    )
    assert seen["device"] == "npu:1" and "NPU 1 of 2" in seen["log"]
