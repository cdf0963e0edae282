"""examples/ascend: the environment, what the scripts hand on, and an installer that only does what it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ASCEND = REPOSITORY / "examples" / "ascend"
SCRIPTS = sorted(
    [*ASCEND.glob("*.sh"), REPOSITORY / "tools" / "npu_check.sh", REPOSITORY / "tools" / "cluster_check.sh"]
)
BARE = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
"""An environment in which nothing of a run is set."""


def bash(*command: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *command], cwd=cwd, env=BARE | environment, capture_output=True, encoding="utf-8", check=False
    )


def environment(**values: str) -> tuple[dict[str, str], str]:
    """What a strict shell has after it sourced env.sh, and what that said."""
    done = bash("-euo", "pipefail", "-c", f"source '{ASCEND}/env.sh' && echo $- && env", **values)
    assert done.returncode == 0, done.stderr
    flags, *lines = done.stdout.splitlines()
    # Whatever CANN's file does, the shell is as strict as it was.
    assert {"e", "u"} <= set(flags)
    return dict(line.partition("=")[::2] for line in lines), done.stderr


def executable(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def cann(folder: Path, name: str) -> Path:
    """A CANN that is as careless about unset variables and exit codes as the real one."""
    folder.mkdir(parents=True)
    (folder / "set_env.sh").write_text(
        f'false\nexport LD_LIBRARY_PATH=/opt/{name}:$LD_LIBRARY_PATH\nexport ASCEND_HOME_PATH="{folder}"\n',
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_end_nobody_by_name(script: Path) -> None:
    assert bash("-n", str(script)).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert not re.search(r"\b(pkill|killall|pgrep)\b", text)
    if shutil.which("shellcheck"):
        checked = subprocess.run(
            ["shellcheck", "-x", str(script)], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
        )
        assert checked.returncode == 0, checked.stdout


def test_cann_is_sourced_where_it_is_found(tmp_path: Path) -> None:
    newer, earlier = cann(tmp_path / "both" / "cann", "newer"), cann(tmp_path / "both" / "ascend-toolkit", "earlier")
    found, said = environment(ASCEND_HOME=str(tmp_path / "both"))
    assert (found["ASCEND_HOME_PATH"], found["LD_LIBRARY_PATH"], said) == (str(newer), "/opt/newer:", "")
    shutil.rmtree(newer)
    assert environment(ASCEND_HOME=str(tmp_path / "both"))[0]["ASCEND_HOME_PATH"] == str(earlier)
    itself = cann(tmp_path / "itself", "itself")
    assert environment(ASCEND_HOME=str(itself))[0]["ASCEND_HOME_PATH"] == str(itself)
    # Sourced once is enough: a second time would put everything on the paths twice.
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        again, said = environment(**{"ASCEND_HOME": str(itself), name: "/elsewhere"})
        assert again[name] == "/elsewhere" and "LD_LIBRARY_PATH" not in again and said == ""


def test_without_cann_one_line_says_what_to_do_and_the_rest_is_set(tmp_path: Path) -> None:
    found, said = environment(ASCEND_HOME=str(tmp_path))
    assert said.count("\n") == 1 and f"no set_env.sh of CANN in {tmp_path}" in said and "ASCEND_HOME" in said
    assert (found["HCCL_CONNECT_TIMEOUT"], found["TASK_QUEUE_ENABLE"]) == ("1200", "1")
    assert found["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:True"


def test_what_is_set_stays(tmp_path: Path) -> None:
    names = re.findall(r"export (\w+)=\$\{\1-", (ASCEND / "env.sh").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) == 12
    # An empty value was somebody's decision too.
    for value in ("7", ""):
        found, _ = environment(ASCEND_HOME_PATH="/cann", **dict.fromkeys(names, value))
        assert {name: found[name] for name in names} == dict.fromkeys(names, value)
    # Newer releases end a process that has both.
    both, _ = environment(ASCEND_HOME_PATH="/cann", PYTORCH_ALLOC_CONF="max_split_size_mb:64")
    assert "PYTORCH_NPU_ALLOC_CONF" not in both


def test_every_variable_is_explained() -> None:
    """By a comment on its line, and by a row of the page."""
    page = (REPOSITORY / "docs" / "ascend.md").read_text(encoding="utf-8")
    lines = (ASCEND / "env.sh").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if name := re.search(r"export (\w+)=\$", line):
            assert re.search(r"\s# \w", line) or lines[number - 1].startswith("# "), line
            assert name[1] in page, name[1]


@pytest.fixture
def handed_on(tmp_path: Path) -> Path:
    """The scripts over a multinode.sh that only says what it was given."""
    shutil.copytree(ASCEND, tmp_path / "examples" / "ascend")
    (tmp_path / "examples" / "multinode.sh").write_text(
        'printf "%s\\n" "$HCCL_CONNECT_TIMEOUT" "$@"\n', encoding="utf-8"
    )
    stages = tmp_path / "examples" / "videogpt"
    stages.mkdir()
    for number in range(1, 5):
        (stages / f"stage{number}.toml").touch()
    return tmp_path


def given(folder: Path, script: str, *arguments: str) -> list[str]:
    done = bash(f"examples/ascend/{script}", *arguments, cwd=folder, ASCEND_HOME_PATH="/cann")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_stages_hand_everything_on(handed_on: Path) -> None:
    timeout, *words = given(handed_on, "pretrain_stage1.sh", "--nnodes", "2", "data.path=/a b", "--node-rank", "1")
    file = words[4].replace("/ascend/../", "/")
    assert timeout == "1200" and file == str(handed_on / "examples" / "videogpt" / "stage1.toml")
    # The platform's default and the folders stand in front of the user's words, which win.
    assert words[:4] == ["--nnodes", "2", "--node-rank", "1"]
    assert words[5:] == [
        "train.platform=npu",
        'train.output="runs/videogpt/stage1"',
        'train.init_from=""',
        "data.path=/a b",
    ]
    runs = handed_on / "my runs"
    (runs / "stage2").mkdir(parents=True)
    asked = given(handed_on, "pretrain_stage3.sh", "--runs", str(runs), "--finished")
    assert asked[1] == "--finished" and f'train.init_from="{runs}/stage2"' in asked
    assert given(handed_on, "multinode.sh", "--nproc-per-node", "8", "f.toml", "a.b=c")[1:] == [
        "--nproc-per-node", "8", "f.toml", "train.platform=npu", "a.b=c"
    ]  # fmt: skip
    assert given(handed_on, "multinode.sh", "--help")[1:] == ["--help"]


def test_sampling_names_the_platform(handed_on: Path) -> None:
    """By itself it would go on with the CPU where CANN does not start.  What the user says comes later, and counts."""
    python = handed_on / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    executable(python, '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    words = given(handed_on, "sample.sh", "--checkpoint", "a run", "--platform", "cpu")
    assert words == "-m megatron_videogpt sample --platform npu --checkpoint".split() + ["a run", "--platform", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["pretrain_stage2.sh"], "runs/videogpt/stage1: no such folder; stage 2 starts from the weights of stage 1"),
        (["pretrain_stage1.sh", "--nnodes"], "--nnodes: a value is missing"),
        (["pretrain_stage1.sh", "other.toml"], "other.toml: expected section.option=value"),
        (["pretrain_stage1.sh", "--stages", "/nowhere"], "/nowhere/stage1.toml: no such file"),
        (["install.sh", "cann"], "cann: expected packages, triton or mindspeed"),
    ],
)
def test_mistakes_are_one_line(handed_on: Path, arguments: list[str], error: str) -> None:
    done = bash(f"examples/ascend/{arguments[0]}", *arguments[1:], cwd=handed_on, ASCEND_HOME_PATH="/cann")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {error}")


PYTHON = """#!/usr/bin/env bash
if [ "$1" = -m ]; then echo "$*" >>"$CALLS"; exit; fi
case ${3:-python} in
  python) echo 3.10.16 ;; torch) echo 2.7.1+cpu ;; torch-npu) echo "$TORCH_NPU" ;; megatron-core) echo 0.16.1 ;;
  numpy) echo 1.26.0 ;; *) echo 1.0 ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """What an installer meets where everything is in place: a Python that writes down what pip is asked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = executable(programs / "python", PYTHON)
    executable(programs / "git", '#!/usr/bin/env bash\necho "git $*" >>"$CALLS"\n')
    executable(programs / "uname", "#!/usr/bin/env bash\necho aarch64\n")
    home = cann(tmp_path / "Ascend" / "cann", "cann")
    (home / "aarch64-linux").mkdir()
    (home / "aarch64-linux" / "ascend_toolkit_install.info").write_text(
        "package_name=x\nversion=9.0.0\n", encoding="utf-8"
    )
    return {
        "PYTHON": str(python),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "TORCH_NPU": "2.7.1.post4",
        "ASCEND_HOME": str(tmp_path / "Ascend"),
        "MINDSPEED": str(tmp_path / "MindSpeed"),
    }


def test_the_installer_looks_and_touches_nothing(machine: dict[str, str]) -> None:
    done = bash(str(ASCEND / "install.sh"), **machine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expected" not in done.stdout and "9.0.0" in done.stdout and not Path(machine["CALLS"]).exists()
    # Each part's commands are shown, on aarch64 without PyTorch's own index.
    assert (
        "--constraint constraints-npu.txt --editable .[npu]" in done.stdout
        and "download.pytorch.org" not in done.stdout
    )
    assert "git clone --branch core_r0.16.0" in done.stdout
    wrong = bash(str(ASCEND / "install.sh"), **machine | {"TORCH_NPU": "2.7.1"})
    assert wrong.returncode == 1 and not Path(machine["CALLS"]).exists()
    (line,) = [line for line in wrong.stdout.splitlines() if "expected" in line]
    assert line.split() == ["torch_npu", "2.7.1", "expected", "2.7.1.post4"]


def test_the_installer_does_what_was_asked_and_no_more(machine: dict[str, str]) -> None:
    done = bash(str(ASCEND / "install.sh"), "packages", **machine)
    calls = Path(machine["CALLS"])
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == ["-m pip install --constraint constraints-npu.txt --editable .[npu]"]
    calls.unlink()
    executable(Path(machine["PYTHON"]).parent / "uname", "#!/usr/bin/env bash\necho x86_64\n")
    Path(machine["MINDSPEED"]).mkdir()
    assert bash(str(ASCEND / "install.sh"), "mindspeed", "packages", **machine).returncode == 0
    packages, einops, mindspeed = calls.read_text().splitlines()
    assert "--extra-index-url https://download.pytorch.org/whl/cpu --constraint" in packages
    # A checkout that is there is not cloned again.
    assert einops.endswith("einops") and mindspeed == f"-m pip install --no-deps --editable {machine['MINDSPEED']}"
