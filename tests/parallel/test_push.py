"""A run that pushes its model at the end, and the command that does the same afterwards, to what stands in for the Hub
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_hub
from tests.fake_hub import FakeHub

from .conftest import CONFIG
from .launch import REPOSITORY, cli, interpreter, run

PUSH = 'train.callbacks=[{name="megatron_videogpt.callbacks.PushToHub", repo="it"}]'


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub.serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def trained(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, and the push."""
    output = tmp_path_factory.mktemp("push") / "run"
    result = cli("train", CONFIG, f"train.output={output}", "train.steps=2", PUSH, cold=True, **hub.environment)
    assert result.returncode == 0, result.stderr
    assert f"the model will be pushed to {hub.address}/me/it" in result.stdout
    assert f"pushed: {hub.address}/me/it/commit/" in result.stdout
    return output


def test_a_finished_run_is_on_the_hub_as_to_hf_writes_it(hub: FakeHub, trained: Path, tmp_path: Path) -> None:
    assert hub.repositories == {"me/it": True}
    tool = REPOSITORY / "tools" / "convert_checkpoint.py"
    command = interpreter(tool, "to-hf", trained, "--output", tmp_path / "run", "--push", "me/by_hand", "--public")
    result = run(command, cold=True, **hub.environment)
    assert result.returncode == 0, result.stderr
    written = {
        path.relative_to(tmp_path / "run").as_posix(): path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    }
    assert hub.files["me/by_hand"] == written and hub.repositories["me/by_hand"] is False
    assert hub.files["me/it"] == written
    assert {"README.md", "config.json", "model.safetensors", "vae/config.json"} <= written.keys()
    assert not [path for path in trained.iterdir() if path.name.startswith(".push")], "nothing is left of the upload"
    assert b"PushToHub" not in written["videogpt_config.toml"], "who opens it must not need, or run, our callbacks"


def test_offline_no_step_is_trained(hub: FakeHub, tmp_path: Path) -> None:
    away = {**hub.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = cli("train", CONFIG, f"train.output={tmp_path / 'run'}", "train.steps=2", PUSH, cold=True, **away)
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    said = "error: callback megatron_videogpt.callbacks.PushToHub, on_train_begin at step 0: it on the Hub: "
    assert lines[0].startswith(f"{said}http://127.0.0.1:9 cannot be reached (")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checking_asks_no_network(hub: FakeHub) -> None:
    before = len(hub.asked)
    result = cli("check", CONFIG, PUSH, cold=True, **hub.environment)
    assert result.returncode == 0 and len(hub.asked) == before, result.stderr
