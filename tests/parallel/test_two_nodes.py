"""Two nodes on one machine: two launchers with different node ranks and addresses, started by the script that users
start.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .launch import REPOSITORY
from .test_resume import CONFIG, losses

LAYOUT = ("parallel.tensor=2", "parallel.sequence=true")


def free_port() -> int:
    """Below those that the system deals out by itself (from 32768 on), which a test beside this one might get."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Nodes:
    """Starts nodes of one job, each with two processes, and ends what is left of them."""

    def __init__(self) -> None:
        self.port = free_port()
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, rank: int, nnodes: int, run: Path, *options: str, address: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        place = ("--node-rank", str(rank), "--nnodes", str(nnodes), "--local-addr", address or f"127.0.0.{rank + 1}")
        command = [
            "bash",
            "examples/multinode.sh",
            *place,
            "--nproc-per-node",
            "2",
            CONFIG,
            f"train.output={run}",
            *options,
        ]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
        }
        env = {**env, "JOIN_TIMEOUT": "120", **environment}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            process.wait(timeout=60)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    several = Nodes()
    yield several
    several.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[tuple[float, int, str]]]:
    """A node that waits for another one as long as it does by default, while other tests go on: seconds, exit code and
    stderr.
    """
    several = Nodes()
    node = several.start(0, 2, tmp_path_factory.mktemp("alone") / "run", *LAYOUT, JOIN_TIMEOUT="")

    def ended() -> tuple[float, int, str]:
        started = time.monotonic()
        _, errors = node.communicate(timeout=100)
        return time.monotonic() - started, node.returncode, errors

    with ThreadPoolExecutor() as watching:
        yield watching.submit(ended)
    several.close()


def error_lines(errors: str) -> list[str]:
    assert "Traceback" not in errors, errors
    return [line for line in errors.splitlines() if line.startswith("error")]


@pytest.mark.long
def test_two_nodes_give_the_losses_of_one_process(nodes: Nodes, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pair = [nodes.start(rank, 2, run, *LAYOUT) for rank in (0, 1)]
    for process in pair:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
    expected, got = losses(finished), losses(run)
    assert got.keys() == expected.keys() and len(got) == 14
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5), step
    logs = sorted(path.name for path in (run / "logs").iterdir())
    assert logs == [f"rank_{rank:05d}.log" for rank in range(4)]
    places = [(run / "logs" / name).read_text().splitlines()[0].partition("rank ")[2] for name in logs]
    assert [place.partition(" of")[0] for place in places] == [
        "0 (local 0)",
        "1 (local 1)",
        "2 (local 0)",
        "3 (local 1)",
    ]


def test_a_node_without_node_0(nodes: Nodes, tmp_path: Path) -> None:
    # Bound and not listened at: no other test beside this one can answer there.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nodes.port = nobody.getsockname()[1]
        node = nodes.start(1, 2, tmp_path / "run", *LAYOUT, JOIN_TIMEOUT="5")
        _, errors = node.communicate(timeout=60)
    assert node.returncode == 2
    (line,) = error_lines(errors)
    assert f"node 0 did not answer at 127.0.0.1:{nodes.port} within JOIN_TIMEOUT = 5 s" in line


@pytest.mark.long
@pytest.mark.usefixtures("alone")
def test_a_node_too_many(nodes: Nodes, tmp_path: Path) -> None:
    long = ("train.steps=100000", "checkpoint.every=0")
    pair = [nodes.start(rank, 2, tmp_path / "run", *LAYOUT, *long) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in pair) and time.monotonic() < deadline
        time.sleep(0.2)
    third = nodes.start(1, 2, tmp_path / "run", *LAYOUT, *long, address="127.0.0.3", JOIN_TIMEOUT="15")
    _, errors = third.communicate(timeout=60)
    assert third.returncode == 1
    (line,) = error_lines(errors)
    assert "already has its 2 nodes (127.0.0.1 127.0.0.2)" in line and "one too many" in line
    # The two others are not disturbed, and end as they are asked to.
    for process in pair:
        assert process.poll() is None
        process.terminate()
    for process in pair:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, output + errors
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_a_layout_that_does_not_fit_is_refused_before_anybody_waits(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.start(0, 3, tmp_path / "run", "parallel.tensor=4")
    _, errors = node.communicate(timeout=60)
    assert node.returncode == 2
    (line,) = error_lines(errors)
    assert "parallel.tensor = 4" in line and "4 processes" in line and "6" in line
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(nodes: Nodes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)):
        node = nodes.start(0, 2, tmp_path / "run", *LAYOUT)
        _, errors = node.communicate(timeout=60)
    assert node.returncode == 2
    (line,) = error_lines(errors)
    assert f"MASTER_PORT = {nodes.port}: already in use" in line


@pytest.mark.long
def test_a_node_that_waits_alone_says_so(alone: Future[tuple[float, int, str]]) -> None:
    seconds, code, errors = alone.result()
    # By itself within a minute; other nodes start beside it here.
    assert seconds < 90 and code == 1
    (line,) = error_lines(errors)
    assert "only 1 of 2 nodes joined within 40 s (127.0.0.1)" in line and "NNODES" in line
