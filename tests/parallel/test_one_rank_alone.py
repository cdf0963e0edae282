"""What one rank alone sees ends all of them at once, with its reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .launch import REPOSITORY, torchrun

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
SABOTAGE = str(REPOSITORY / "tests" / "parallel" / "sabotage.py")


def sabotaged(what: str, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Two data parallel ranks; the run must not end by a time limit, so that one of seconds must not be told."""
    options = ("train.steps=6", "train.timeout_minutes=0.5", "optimizer.max_skipped=5", *options)
    result = torchrun(2, SABOTAGE, what, "train", CONFIG, f"train.output={run}", *options, check=False)
    assert result.returncode != 0 and "took longer than" not in result.stderr, result.stderr
    return result


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error")]


def test_unreadable_data_after_a_skipped_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = sabotaged("unreadable_after_a_skipped_step", run)
    assert (
        errors(result) == ["error: rank 1, reading the data of step 4: the disk of node 7 is gone"]
        and "UserError" not in result.stderr
    )
    # The steps before are recorded, the skipped one among them.
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert [json.loads(line)["step"] for line in (run / "skipped.jsonl").read_text().splitlines()] == [3]


@pytest.mark.parametrize(
    ("what", "told"),
    [("fault_after_a_skipped_step", "KeyError: 'frames'"), ("fault_in_validation", "ValueError: not the user's")],
)
def test_a_fault_of_one_rank_keeps_its_traceback_and_is_told_once(tmp_path: Path, what: str, told: str) -> None:
    run = tmp_path / "run"
    result = sabotaged(what, run, "eval.every=100")
    (line,) = errors(result)
    assert line.startswith(f"error (rank 1): {told}")
    # Once in its line and once below its traceback; the launcher has one as well.
    assert result.stderr.count(told) == 2 and "in finish" in result.stderr or "in read" in result.stderr
    # The other one says in its log why it ended.
    assert "rank 1" in (run / "logs" / "rank_00000.log").read_text().splitlines()[-1]


def test_both_ranks_end_with_the_reason_of_one(tmp_path: Path) -> None:
    torchrun(2, str(REPOSITORY / "tests" / "parallel" / "together_worker.py"), str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    users = {
        "a user's": "rank 1, reading: no such folder",
        "a user's on both": "no such folder",
        "reading": "process 1 cannot read what others can: a.mp4: no such file; put it where all of them see the same "
        "file",
        "encoding": "rank 1, preparing: /videos: no such folder",
        "attention": "rank 1, choosing an attention backend: flash_attn is not installed",
    }
    for name, text in users.items():
        assert first[name] == second[name] == ["RunError", text], name
    told = "rank 1 failed, reading: KeyError: 'x'"
    assert first["a fault"] == first["a fault and a user's"] == ["PeerFailed", told]
    assert second["a fault"] == second["a fault and a user's"] == ["KeyError", "'x'"]
    assert first["a fault on both"] == ["KeyError", "'x'"] and second["a fault on both"] == [
        "PeerFailed",
        told.replace("1", "0"),
    ]
    # Nothing of a failure is left on its way.
    assert first["well"] == second["well"] == first["well again"] == second["well again"] == ["", [0, 1]]
