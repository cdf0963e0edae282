"""`scaling run` and `status` with a stand-in for training: what is started, tried again, given up, skipped, marked and
refused; real runs are in tests/parallel/test_ladder.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.checkpoint.in_use import LOCK
from megatron_videogpt.data.locks import locked
from megatron_videogpt.scaling.ladder.folder import LOCK as LADDER_LOCK
from megatron_videogpt.scaling.ladder.folder import read_plan
from megatron_videogpt.scaling.ladder.launch import Job, Launcher, command_of
from megatron_videogpt.scaling.ladder.options import Ladder
from megatron_videogpt.scaling.ladder.state import state_of

from .test_ladder_plan import ladder

TRAINING = """
import json, pathlib, sys, time, tomllib
config, name = pathlib.Path(sys.argv[1]), sys.argv[2]
options = tomllib.loads(config.read_text())
folder, steps = pathlib.Path(options["train"]["output"]), options["train"]["steps"]
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.toml").write_text(config.read_text())
with open(folder / "starts", "a") as starts:
    starts.write(f"{time.time()}\\n")
attempt = len((folder / "starts").read_text().split())

def log(**line):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

def save(step):
    place = folder / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"step": step}))

if name == "10k-x0.5" and attempt == 1:  # dies on its way
    save(1)
    print("killed")
    sys.exit(9)
if name == "10k-x1":  # gets nowhere
    print("error: out of memory")
    sys.exit(1)
if name == "10k-x2":  # a mistake
    print("Traceback", "error: data.path is gone", sep="\\n")
    sys.exit(2)
if name == "40k-x0.5":  # its gradients are no numbers
    with open(folder / "skipped.jsonl", "a") as file:
        for step in range(1, 11):
            file.write(json.dumps({"step": step}) + "\\n")
    sys.exit(2)
log(step=0, validation_loss=1.0)
log(step=steps, loss=0.5, step_time=0.1, tokens_per_second=1e3)
save(steps)
log(step=steps, validation_loss=1.6 if name == "40k-x1" else 0.4)
"""


@pytest.fixture
def standin(tmp_path: Path) -> str:
    (tmp_path / "training.py").write_text(TRAINING, encoding="utf-8")
    return f"{sys.executable} {tmp_path / 'training.py'} {{config}} {{name}}"


def run(*words: object) -> int:
    return main(["scaling", "run", *map(str, words)])


def starts(folder: Path, name: str) -> int:
    path = folder / name / "starts"
    return len(path.read_text().split()) if path.is_file() else 0


def test_runs_are_tried_again_given_up_and_marked(
    tmp_path: Path, standin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = ladder(tmp_path, command=standin, gpus=3, gpus_per_run=1, retries=1), tmp_path / "ladder"
    assert run(path) == 1
    printed = capsys.readouterr().out
    for text in (
        "10k-x0.5: ended at step 1 with exit code 9: killed",
        "10k-x0.5: started from step 1 (process ",
        "10k-x0.5: finished after ",
        "10k-x1: given up: 2 attempts without a new checkpoint (ladder.retries): error: out of memory",
        "10k-x2: given up: error: data.path is gone",
        "40k-x0.5: diverged after ",
        "40k-x0.5 is left out: diverged: stopped after 10 skipped steps in a row, the last one 10",
        "40k-x1 is left out: diverged: validation_loss 1.6 is above 1.5 times its lowest before, 1 at step 0",
        "6 runs: ",
        "2 runs were given up; their output is in ",
    ):
        assert text in printed, (text, printed)
    tried = {f"{size}-x{m}": starts(folder, f"{size}-x{m}") for size in ("10k", "40k") for m in ("0.5", "1", "2")}
    assert tried == {"10k-x0.5": 2, "10k-x1": 2, "10k-x2": 1, "40k-x0.5": 1, "40k-x1": 1, "40k-x2": 1}
    # Once more: what is over is not started again, what was given up is.
    assert run(path, "--retries", "0", "--at-once", "1") == 1
    assert "10k-x0.5: finished before" in capsys.readouterr().out
    after = {name: starts(folder, name) - tried[name] for name in tried}
    assert after == {"10k-x0.5": 0, "10k-x1": 1, "10k-x2": 1, "40k-x0.5": 0, "40k-x1": 0, "40k-x2": 0}
    assert main(["scaling", "status", str(folder), "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert {name: one["state"] for name, one in found.items()} == {
        "10k-x0.5": "finished",
        "10k-x1": "new",
        "10k-x2": "new",
        "40k-x0.5": "diverged",
        "40k-x1": "diverged",
        "40k-x2": "finished",
    }
    assert found["40k-x2"]["validation_loss"] == 0.4 and found["10k-x1"]["validation_loss"] is None
    assert main(["scaling", "status", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "2 finished" in printed and "a validation_loss that is no finite number or above 1.5 times" in printed
    # A fit leaves out by the same rule, and says so.
    assert main(["scaling", "fit", str(folder), "--output", str(tmp_path / "fit")]) == 2
    printed = capsys.readouterr().out
    for text in (
        "dropped: 40k-x1: diverged: validation_loss 1.6 is above 1.5 times",
        "dropped: 40k-x0.5: planned, and has not begun",
        "dropped: 10k-x2: planned, and has not begun",
    ):
        assert text in printed, (text, printed)


def healthy(tmp_path: Path) -> str:
    """A stand-in that nothing happens to."""
    text = TRAINING.replace('"10k-x0.5"', '""').replace('"10k-x1"', '""').replace('"10k-x2"', '""')
    (tmp_path / "training.py").write_text(text.replace('"40k-x0.5"', '""').replace('"40k-x1"', '""'), encoding="utf-8")
    return f"{sys.executable} {tmp_path / 'training.py'} {{config}} {{name}}"


def test_what_is_there_already_is_respected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = healthy(tmp_path)
    path, folder = ladder(tmp_path, command=command, sizes=[1e4, 4e4], multiples=[0.5]), tmp_path / "ladder"
    assert run(path) == 0
    assert "all runs are over; next: python -m megatron_videogpt scaling fit" in capsys.readouterr().out

    def refused(line: str, *words: object) -> None:
        for command in ("plan", "run"):
            assert main(["scaling", command, *map(str, words or (path,))]) == 2
            (error,) = capsys.readouterr().err.strip().splitlines()
            assert line in error, error

    # Another layout, log or machine is no change of the ladder; a longer one has more runs.
    more = ladder(tmp_path, command=command, sizes=[1e4, 4e4], multiples=[0.5, 1], retries=5)
    assert run(more, "logging.every=5", "train.micro_batch_size=2") == 0
    assert starts(folder, "10k-x0.5") == 1 and starts(folder, "10k-x1") == 1
    ladder(tmp_path, command=command, sizes=[1e4, 4e4], multiples=[0.5, 1], lr=1e-3)
    refused(
        "10k-x0.5: the ladder has changed since this run began (changed in the plan: ladder.lr, ladder.retries): opti"
    )
    ladder(tmp_path, command=command, sizes=[1e4, 4e4], multiples=[0.5])
    refused(
        "10k-x1: is a run that this ladder does not have (changed in the plan: ladder.multiples, ladder.retries); mov"
    )
    ladder(tmp_path, command=command, sizes=[1e4, 4e4], multiples=[0.5, 1])
    (folder / "foreign").mkdir()
    (folder / "foreign" / "metrics.jsonl").write_text("{}", encoding="utf-8")
    refused(
        "foreign: is a run that this ladder does not have (changed in the plan: ladder.retries); move it away, undo th"
    )
    (folder / "foreign" / "metrics.jsonl").unlink()
    (folder / "10k-x1" / "config.toml").write_text("[trainer]\nepochs = 3\n", encoding="utf-8")
    refused("config.toml: not a run of this release: [trainer]: there is no such section")
    with locked(folder / LADDER_LOCK, 0, "launching"):
        refused(f"this ladder is being launched (process {os.getpid()} on ")


def test_a_run_that_trains_already_is_waited_for(tmp_path: Path) -> None:
    """A launcher was killed, its run lives on: nobody starts it a second time, and its device is taken."""
    path = ladder(tmp_path, command=healthy(tmp_path), multiples=[0.5])
    assert main(["scaling", "plan", str(path)]) == 0
    folder, lines = tmp_path / "ladder", list[str]()
    _, listed = read_plan(folder)
    options = Ladder(output=str(folder), command=healthy(tmp_path), gpus=1)
    listed[0].folder.mkdir()
    with locked(listed[0].folder / LOCK, 0, "training"):
        launcher = Launcher(folder, options, [Job(one, state_of(one)) for one in listed], lines.append)
        launcher.look()
        launcher.start_some()
        assert [job.process for job in launcher.jobs] == [None, None]
    assert launcher.go(lambda: None)
    assert [starts(folder, one.name) for one in listed] == [1, 1]
    assert launcher.free == [0] and f"{listed[0].name}: new" in lines[0]


def test_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What runs is asked to save, and the next call goes on."""
    (tmp_path / "training.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    pathlib.Path(sys.argv[1]).touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    path = ladder(tmp_path, command=f"{sys.executable} {tmp_path / 'training.py'} {tmp_path}/{{name}}", multiples=[1])
    began = time.monotonic()
    assert run(path, "--minutes", "0.05") == 0
    assert time.monotonic() - began < 30
    printed = capsys.readouterr().out
    assert "asked to save and end: " in printed and "stopped after 0.05 minutes, 2 runs to go; the same comm" in printed


def test_a_command_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ladder(tmp_path, command="no-such-program {config}", multiples=[1])) == 2
    assert (
        "error: ladder.command: no-such-program cannot be started (No such file or directory)"
        in capsys.readouterr().err
    )


def test_commands(tmp_path: Path) -> None:
    def command(text: str, devices: int = 1) -> list[str]:
        one: Any = type("Run", (), {"name": "10M", "devices": devices, "folder": Path("runs/10M")})()
        return command_of(one, Ladder(command=text), Path("10M.toml"))

    assert command("")[1:] == ["-m", "megatron_videogpt", "train", "10M.toml"]
    assert command("", 4)[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert command("", 4)[4:] == ["--nproc_per_node=4", "-m", "megatron_videogpt", "train", "10M.toml"]
    slurm = "sbatch --wait --nodes={nodes} --job-name='{name} of {gpus}' examples/slurm.sbatch {config}"
    assert command(slurm, 20)[2:] == ["--nodes=3", "--job-name=10M of 20", "examples/slurm.sbatch", "10M.toml"]
    with pytest.raises(ValueError, match=r"KeyError: 'file'\); what is filled in is \{config\}, \{name\}"):
        command("bash {file}")
