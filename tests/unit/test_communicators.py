"""HCCL's buffers in estimates of memory, by hand, and its limits of time beside a run's."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.config.schema import Config
from megatron_videogpt.plan.communicators import communicator_bytes, communicators
from megatron_videogpt.plan.memory import RESERVE, rank_memory
from megatron_videogpt.plan.recompute import least_recompute, with_policy
from megatron_videogpt.platforms.hccl import fit_timeouts

from .test_planner import CHANNELS, STAGE4, WORK, small

MB = 2**20


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HCCL_BUFFSIZE", "P2P_HCCL_BUFFSIZE"):
        monkeypatch.delenv(name, raising=False)


def on_npu(**parallel: object) -> Config:
    config = small(**parallel)
    return replace(config, train=replace(config.train, platform="npu"))


def test_communicators_of_layouts_by_hand() -> None:
    assert communicators(on_npu(), 1) == []
    counts = {
        # All ranks and gradient norms always; then one for each axis, and where messages go from rank to rank.
        (): (8, 3, 0),
        (("tensor", 2),): (8, 4, 0),
        (("tensor", 4), ("context", 2)): (8, 5, 0),
        (("tensor", 8),): (8, 3, 0),
        (("pipeline", 2),): (8, 4, 1),
        (("pipeline", 2), ("virtual_pipeline", 2)): (8, 4, 2),
        (("pipeline", 4),): (8, 4, 1),
        (("tensor", 2), ("context", 2), ("pipeline", 2)): (16, 6, 1),
    }
    for parallel, (ranks, every, pairs) in counts.items():
        config = on_npu(**dict(parallel))
        found = communicators(config, ranks)
        assert (len(found), sum(one.pairs for one in found)) == (every, pairs), parallel
        assert communicator_bytes(config, ranks, {}) == 400 * MB * every + 40 * MB * pairs
        sizes = {"HCCL_BUFFSIZE": "100", "P2P_HCCL_BUFFSIZE": "0"}
        assert communicator_bytes(config, ranks, sizes) == 200 * MB * every
        assert communicator_bytes(small(**dict(parallel)), ranks, {}) == 0
    with pytest.raises(ValueError, match=r"^HCCL_BUFFSIZE = 1G: must be a whole number of MB"):
        communicator_bytes(on_npu(), 2, {"HCCL_BUFFSIZE": "1G"})


def test_estimates_and_recomputation_count_them() -> None:
    plain, npu = (rank_memory(config, CHANNELS, 8, WORK) for config in (small(tensor=2), on_npu(tensor=2)))
    assert npu.total - plain.total == npu.communicators == 1600 * MB and plain.communicators == 0
    # What the device's own counter sees stays the same.
    assert npu.allocated == plain.allocated == plain.total
    # Of a device on which everything just fits without them, recomputation has to give them room.
    limit = (rank_memory(small(), CHANNELS, 1, WORK).total + 1200 * MB) / (1 - RESERVE)
    assert least_recompute(small(), 8, CHANNELS, WORK, limit).parallel.recompute == "none"
    needs = rank_memory(with_policy(on_npu(), "none"), CHANNELS, 8, WORK).total / (1 - RESERVE)
    chosen = least_recompute(on_npu(), 8, CHANNELS, WORK, needs * 0.999)
    assert chosen is not None and chosen.parallel.recompute == "selective"


def test_check_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {}
    for platform in ("npu", "auto"):
        argv = ["check", str(STAGE4), "--gpus", "320", "--frame", "192x320", f"train.platform={platform}"]
        assert cli.main([*argv, "parallel.tensor=8", "parallel.sequence=true"]) == 0
        lines[platform] = [line for line in capsys.readouterr().out.splitlines() if "communicators" in line]
    assert lines["auto"] == []
    # 1.68 GB in decimal units: four communicators of 400 MB.
    (line,) = lines["npu"]
    assert line.count("1.68 GB") == 5


def test_hccl_waits_by_the_runs_limit() -> None:
    environ: dict[str, str] = {}
    assert fit_timeouts(30, environ) == 1836
    # Its own defaults, with a run's own.
    assert environ == {"HCCL_EXEC_TIMEOUT": "1836", "HCCL_EVENT_TIMEOUT": "1868"}
    longer: dict[str, str] = {"HCCL_CONNECT_TIMEOUT": "9000"}
    assert fit_timeouts(120, longer) == 9000
    assert (longer["HCCL_EXEC_TIMEOUT"], longer["HCCL_EVENT_TIMEOUT"]) == ("7236", "7268")
    given = {"HCCL_EXEC_TIMEOUT": "2000", "HCCL_EVENT_TIMEOUT": "3000"}
    assert fit_timeouts(30, given) == 2000 and given["HCCL_EXEC_TIMEOUT"] == "2000"
    endless = {"HCCL_EXEC_TIMEOUT": "0"}
    assert fit_timeouts(30, endless) == 120 and endless["HCCL_EVENT_TIMEOUT"] == "0"


def test_process_groups_outlast_hccl(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.platforms import world

    for name in ("HCCL_EXEC_TIMEOUT", "HCCL_EVENT_TIMEOUT", "HCCL_CONNECT_TIMEOUT"):
        # Set and removed, so that what the function sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    hccl, nccl = (SimpleNamespace(backend=name) for name in ("hccl", "nccl"))
    for minutes in (29.5, 30, 120):
        monkeypatch.delenv("HCCL_EXEC_TIMEOUT", raising=False)
        monkeypatch.delenv("HCCL_EVENT_TIMEOUT", raising=False)
        limit = world._limit(hccl, minutes)  # type: ignore[arg-type]
        assert 60 * limit > fit_timeouts(minutes) > 60 * minutes and limit == world._limit(nccl, minutes)  # type: ignore[arg-type]
    # Two minutes to connect by default, an hour if that is asked for.
    assert world._limit(hccl, 1) == 121  # type: ignore[arg-type]
    monkeypatch.delenv("HCCL_EXEC_TIMEOUT")
    monkeypatch.delenv("HCCL_EVENT_TIMEOUT")
    assert world._limit(hccl, 1) == 3  # type: ignore[arg-type]
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "3600")
    assert world._limit(hccl, 30) == 61  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        ({"HCCL_EXEC_TIMEOUT": "soon"}, "HCCL_EXEC_TIMEOUT = soon: must be a whole number of seconds"),
        ({"HCCL_CONNECT_TIMEOUT": "-1"}, "HCCL_CONNECT_TIMEOUT = -1: must be a whole number of seconds"),
        ({"HCCL_EVENT_TIMEOUT": "1836"}, "HCCL_EVENT_TIMEOUT = 1836: must be above HCCL_EXEC_TIMEOUT = 1836"),
        ({"HCCL_EXEC_TIMEOUT": "0", "HCCL_EVENT_TIMEOUT": "9"}, "HCCL_EVENT_TIMEOUT = 9: must be above"),
    ],
)
def test_wrong_limits_are_one_line(environ: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError) as raised:
        fit_timeouts(30, environ)
    assert str(raised.value).startswith(error) and "\n" not in str(raised.value)


def test_a_collective_that_ends_before_a_phase_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_timeouts(120, {"HCCL_EXEC_TIMEOUT": "1836"}) == 1836
    (record,) = caplog.records
    assert "HCCL_EXEC_TIMEOUT = 1836 s ends a collective before train.timeout_minutes = 120" in record.getMessage()


def test_a_mode_that_ends_collectives_early_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_timeouts(18, {"HCCL_OP_EXPANSION_MODE": "AIV"}) == 1116
        assert fit_timeouts(30, {"HCCL_OP_EXPANSION_MODE": "AI_CPU"}) == 1836
        assert not caplog.records
        assert fit_timeouts(30, {"HCCL_OP_EXPANSION_MODE": "AIV"}) == 1836
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("HCCL_OP_EXPANSION_MODE = AIV ends a collective after 1091 s at most, before") and (
        said.endswith("train.timeout_minutes = 30 does; unset it, or train.timeout_minutes=18")
    )


CLUSTER = """#!/usr/bin/env bash
echo "$TASK_QUEUE_ENABLE $*"
"""


def test_the_cluster_check_counts_npus(tmp_path: Path) -> None:
    """With programs that stand in for those that look at devices, and for Python."""
    import os
    import shutil
    import subprocess

    root = Path(__file__).resolve().parents[2]
    for folder in ("tools", "examples/ascend", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("tools/cluster_check.sh", "examples/ascend/env.sh"):
        shutil.copy(root / name, tmp_path / name)
    for name, text in {
        "find": "#!/bin/sh\nprintf '/dev/davinci%s\\n' 0 1 2 3\n",
        "nvidia-smi": "#!/bin/sh\nexit 9\n",
    }.items():
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
    (tmp_path / "bin" / "python3").write_text(CLUSTER, encoding="utf-8")
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "tools" / "cluster_check.sh")],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ASCEND_HOME_PATH": "/cann"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("1 -m torch.distributed.run")
        and "--nproc-per-node 4 tools/cluster_check.py" in done.stdout
    )
