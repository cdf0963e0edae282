"""The first stage's script on two "nodes" that look like Ascend machines to a process, and a clip of what it trained.

CANN, torch_npu, HCCL and MindSpeed are stand-ins on the CPU: scripts, environment, rendezvous and platform are real.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.npu_runs import HAS, search_path

from .launch import REPOSITORY
from .test_resume import CONFIG, losses
from .test_two_nodes import free_port

EXAMPLES = REPOSITORY / "examples" / "ascend"


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell on such a machine, before anything was sourced."""
    home = tmp_path_factory.mktemp("Ascend")
    (home / "cann").mkdir()
    (home / "cann" / "set_env.sh").write_text(f'export ASCEND_HOME_PATH="{home}/cann"\n', encoding="utf-8")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    places = {"PYTHONPATH": search_path(*HAS), "ASCEND_HOME": str(home), "STAND_IN_NPUS": "2"}
    return kept | places | {"PYTHONWARNINGS": "ignore", "JOIN_TIMEOUT": "240"}


@pytest.fixture(scope="module")
def trained(surroundings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of stage 1, after both nodes have ended well."""
    folder, port = tmp_path_factory.mktemp("stage1"), free_port()
    (folder / "stage1.toml").write_text(f'base = "{CONFIG}"\n', encoding="utf-8")
    nodes = []
    for rank in (0, 1):
        place = ("--nnodes", "2", "--node-rank", str(rank), "--local-addr", f"127.0.0.{rank + 1}")
        command = ["bash", str(EXAMPLES / "pretrain_stage1.sh"), *place, "--nproc-per-node", "1"]
        command += ["--master-port", str(port), "--stages", str(folder), "--runs", str(folder / "runs")]
        # How fast a CPU is that stands in for a device says nothing, and takes it a minute to find out.
        command += ["logging.slowest_every=0"]
        nodes.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=surroundings,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        )
    try:
        for node in nodes:
            output, errors = node.communicate(timeout=560)
            assert node.returncode == 0, output[-3000:] + errors[-6000:]
    finally:
        for node in nodes:
            node.kill()
    return folder / "runs" / "stage1"


@pytest.mark.long
def test_two_nodes_give_the_losses_of_a_cpu(trained: Path, finished: Path) -> None:
    expected, got = losses(finished), losses(trained)
    assert got.keys() == expected.keys() and len(got) == 14
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5), step
    logs = [(trained / "logs" / f"rank_{rank:05d}.log").read_text(encoding="utf-8") for rank in (0, 1)]
    # Each node's process took its first NPU, and its log went on after MindSpeed was imported.
    assert all("NPU 0 of 2: Ascend910B2; adaptor mindspeed" in log for log in logs)
    assert 'platform = "npu"' in (trained / "config.toml").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_script_continues_a_scene(trained: Path, surroundings: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(EXAMPLES / "sample.sh"), "--checkpoint", str(trained), "--scene", "bounce/1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--clips", "2", "--steps", "2"],
        env=surroundings,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    (report,) = (tmp_path / "out").glob("*.json")
    assert json.loads(report.read_text(encoding="utf-8"))
