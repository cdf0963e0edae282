"""A second start in the folder of a living run ends in one line and leaves no trace there; one after a killed run goes
on.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

from megatron_videogpt.checkpoint.folders import complete_folders, step_of

from .launch import REPOSITORY, cli, interpreter, kill_tree, run, start, torchrun
from .test_errors import error_of
from .test_resume import CONFIG, losses


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refuse(folder: Path, processes: int) -> str:
    """The one line of a second start."""
    options = ("train", CONFIG, f"train.output={folder}", "optimizer.lr=5e-4")
    if processes == 1:
        return error_of(cli(*options))
    result = torchrun(processes, "-m", "megatron_videogpt", *options, check=False)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert result.returncode != 0 and "Traceback" not in result.stderr.partition(line)[0]
    return line


def test_a_second_start_leaves_no_trace_and_one_after_a_kill_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (CONFIG, f"train.output={folder}", "optimizer.schedule=constant")
    living = start(interpreter("-m", "megatron_videogpt", "train", *arguments, "train.steps=100000"))
    try:
        deadline = time.monotonic() + 200
        while not complete_folders(folder):
            assert living.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        # It holds still, so that what another one writes can be seen.
        os.kill(living.pid, signal.SIGSTOP)
        before, who = contents(folder), rf"process {living.pid} on {re.escape(socket.gethostname())} since "
        for line in (refuse(folder, 1), refuse(folder, 2)):
            assert re.match(rf"error: train.output = {folder}: a run is going on there \({who}", line)
            assert line.endswith("); wait until it has ended, or use another train.output")
        tool = run(interpreter(REPOSITORY / "tools" / "convert_checkpoint.py", "from-hf", tmp_path, "--output", folder))
        assert tool.returncode == 2 and "a run is going on there" in tool.stderr
        free = run(interpreter(REPOSITORY / "tools" / "run_state.py", "--free", *arguments))
        assert free.returncode == 2 and "a run is going on there" in free.stderr
        assert contents(folder) == before
    finally:
        kill_tree(living)
        living.communicate(timeout=100)
    steps = step_of(complete_folders(folder)[-1]) + 2
    result = torchrun(2, "-m", "megatron_videogpt", "train", *arguments, f"train.steps={steps}")
    assert f"step {steps - 2} of {steps}, 2 to go; learning rate 3.00e-03 -> 3.00e-03 (constant)" in result.stdout
    assert f"train.steps is 100000 there and {steps} here" in result.stdout
    assert max(losses(folder)) == steps
    logs = [(folder / "logs" / f"rank_0000{rank}.log").read_text() for rank in (0, 1)]
    assert f"was killed (process {living.pid} on " in logs[0] and "start: host" in logs[1]
    # All steps are done: said, and no mistake.
    result = cli("train", *arguments, f"train.steps={steps}")
    assert result.returncode == 0, result.stderr
    assert f"at step {steps} of {steps} (train.steps={steps}): nothing to do" in result.stdout
