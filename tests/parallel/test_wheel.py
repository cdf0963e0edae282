"""The wheel in an environment of its own, away from the checkout: it prepares, encodes, trains, samples, converts and
verifies.

The environment is empty but for the wheel, and looks for everything else where the running one has it (a .pth file): a
second torch would be the same bytes, minutes later.  That is fair because what is found there is other people's: the
project's editable installation is a hook in a .pth file of that folder, and Python reads such files of its own folder
only.  The first test makes sure of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from megatron_videogpt.config.load import tomllib
from megatron_videogpt.data.shards.dataset import load_index
from tests.parallel.launch import REPOSITORY

pytestmark = pytest.mark.long

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
CLIPS = REPOSITORY / "tests" / "videos"
RUN = """
train = {steps = 2, global_batch_size = 2, precision = "fp32", platform = "cpu", threads = 1, output = "run"}
codec = {name = "tiny"}
eval = {every = 0}
sample = {history = 2, clips = [2], window = 4, steps = 2, guidance = 1.0}
logging = {every = 1, tensorboard = false}
[data]
source = "shards"
path = "latents"
frames = 4
frame_interval = [1, 2]
clips = [1, 4]
longest_side = 64
min_side = 16
validation_fraction = 0.3
workers = 0
[model]
num_layers = 2
hidden_size = 32
ffn_hidden_size = 48
num_attention_heads = 4
position_table_size = 8
"""
WHERE = """
import importlib.metadata, importlib.util, json, sys, megatron_videogpt
print(json.dumps([megatron_videogpt.__file__, importlib.util.find_spec("tools") is None, sys.path,
    importlib.metadata.distribution("megatron_videogpt").locate_file("").as_posix()]))
"""


class Place:
    """The environment's programs, and the folder that they run in."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.python = environment / "bin" / "python"

    def start(self, *command: object) -> subprocess.Popen[str]:
        """A program of the environment; nothing tells it of the checkout."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RANK", "WORLD"))}
        return subprocess.Popen(
            [str(self.environment / "bin" / str(command[0])), *map(str, command[1:])],
            cwd=self.folder,
            env={**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object) -> str:
        """What it prints; the test fails where it fails."""
        return ended(self.start(*command))

    def cli(self, *words: object) -> str:
        """`python -m megatron_videogpt`."""
        return self.run("python", "-m", "megatron_videogpt", *words)


def ended(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, f"{process.args}\n{output[-2000:]}\n{errors[-4000:]}"
    return output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        REPOSITORY / "megatron_videogpt",
        folder / "source" / "megatron_videogpt",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, folder / "source")
    offline = ("-q", "--no-deps", "--no-build-isolation", "--no-index")
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    found = Place(environment, tmp_path_factory.mktemp("elsewhere"))
    # Before the .pth file: pip is not to see what is installed elsewhere.
    pip = [sys.executable, "-m", "pip", "--python", str(found.python), "install"]
    installed = subprocess.run([*pip, "-q", "--no-deps", "--no-index", str(wheel)], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (environment / "lib" / version / "site-packages" / "dependencies.pth").write_text("\n".join(folders))
    return found


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        scripts = next(file.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    package = REPOSITORY / "megatron_videogpt"
    mine = {path.relative_to(REPOSITORY).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == {
        name for name in mine if "__pycache__" not in name and not name.endswith(".pyc")
    }
    assert "megatron-videogpt = megatron_videogpt.__main__:main" in scripts


def test_it_works_away_from_the_checkout(place: Place) -> None:
    file, without_tools, searched, installed = json.loads(place.run("python", "-c", WHERE))
    inside = str(place.environment)
    assert file.startswith(inside) and installed.startswith(inside) and without_tools
    assert str(REPOSITORY) not in [str(Path(name).resolve()) for name in searched if name]

    folder = place.folder
    (folder / "run.toml").write_text(RUN)
    small = ("--longest-side", "64", "--min-side", "16", "--dtype", "fp32", "--platform", "cpu")
    said = place.run("megatron-videogpt", "data", "prepare", CLIPS, "--output", "shards", "--min-side", 64)
    assert "3 videos" in said and len(load_index(folder / "shards")) == 3
    words = ("data", "encode", "shards", "--output", "latents", "--codec", "tiny", *small, "--workers", 0)
    assert "3 videos" in place.cli(*words)
    assert load_index(folder / "latents").kind == "latents"

    place.cli("train", "run.toml")
    assert place.run("megatron-videogpt", "state", "run.toml").strip() == "finished at step 2"
    losses = [json.loads(line).get("loss") for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None and 0 < loss < 10]) == 2

    clip = next(path for path in sorted(CLIPS.iterdir()) if path.suffix == ".mp4")
    sampling = place.start("megatron-videogpt", "sample", "--checkpoint", "run", clip, "--output", "out.mp4")
    place.cli("convert", "to-hf", "run", "--output", "hf", "--license", "mit")
    ended(sampling)
    assert (folder / "out.mp4").stat().st_size > 500

    # Two processes, which torchrun starts from the environment; then all that a published folder must be.
    back = place.start("megatron-videogpt", "convert", "from-hf", "hf", "--output", "back", "--tensor", 2)
    (folder / "stages").mkdir()
    shutil.copy(folder / "run" / "config.toml", folder / "stages" / "stage1.toml")
    skipped = ("--stages", "stages", "--skip", "round trip", "predictions")
    assert "4 passed, 0 failed, 2 not run" in place.cli("convert", "verify", "hf", *skipped)
    assert "read back and equal: back" in ended(back)
    config = tomllib.loads((folder / "back" / "config.toml").read_text())
    assert config["parallel"]["tensor"] == 2 and (folder / "back" / "checkpoints").is_dir()
