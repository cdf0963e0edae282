"""docs/first_real_run.md: every command in its order, on ten videos, in two processes, and with a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from megatron_videogpt.config.load import load_config
from megatron_videogpt.model.flops import component_parameters
from megatron_videogpt.objective.build import parameter_table
from tests.data.vae import small_kl
from tests.miniatures import folder_of_videos

from .launch import REPOSITORY, interpreter, run, torchrun

PAGE = REPOSITORY / "docs" / "first_real_run.md"
SMALL = ("--shrink", "data.longest_side=256", "sample.window=24", "train.output=runs/mine")
"""What a command that trains the real model is given too; the run is then found where the page looks for it."""


def blocks(kind: str) -> list[str]:
    """The lines of the page's code blocks of a kind; continued ones joined."""
    text = PAGE.read_text(encoding="utf-8")
    found = "".join(re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return found.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which all was run, and what each command printed."""
    home, printed = tmp_path_factory.mktemp("home"), {}
    for name in ("examples", "tools"):
        (home / name).symlink_to(REPOSITORY / name)
    folder_of_videos(home / "data" / "videos", 10, 40, (320, 180))
    folder_of_videos(home / "data" / "held_out", 2, 100, (320, 180))
    small_kl(home / "checkpoints" / "sdxl-vae")
    for line in blocks("bash"):
        words = shlex.split(line)
        if words[0] == "torchrun":
            assert words[1] == "--nproc_per_node=8", line
            small = SMALL if "train" in words and "--shrink" not in words else ()
            ended = torchrun(2, *words[2:], *small, cwd=str(home))
        else:
            assert words[0] == "python", line
            ended = run(interpreter(*words[1:]), cwd=str(home))
        assert ended.returncode == 0, (line, ended.stdout[-1000:], ended.stderr[-3000:])
        printed[line] = ended.stdout
    return home, printed


@pytest.mark.long
def test_its_commands_run(done: tuple[Path, dict[str, str]]) -> None:
    home, printed = done
    assert len(printed) == 9
    for name in ("mine", "mine-shrunk"):
        lines = [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2]
        assert any("validation_loss" in line for line in lines) and any("prediction_ratio" in line for line in lines)
        assert list((home / "runs" / name / "predictions").glob("*.png"))
        config = (home / "runs" / name / "config.toml").read_text(encoding="utf-8")
        assert "num_layers = 2 " in config and 'path = "shards/mine_latents"' in config
    assert len(list((home / "runs/mine/samples").glob("*.mp4"))) == 2
    assert "psnr" in json.loads((home / "runs/mine/samples/metrics.json").read_text())["mean"]
    assert (home / "mine-hf/model.safetensors").is_file() and list((home / "runs/mine/from_hub").glob("*.mp4"))


@pytest.mark.long
def test_what_it_quotes_is_printed(done: tuple[Path, dict[str, str]]) -> None:
    (answer,) = (text for line, text in done[1].items() if "--memory-gb 80" in line)
    plain = [re.sub(r"\s+", " ", line) for line in answer.splitlines()]
    quoted = [re.sub(r"\s+", " ", line) for line in blocks("text")]
    assert len(quoted) == 6 and [line for line in quoted if line not in plain] == []


@pytest.mark.long
def test_its_arithmetic_holds(done: tuple[Path, dict[str, str]]) -> None:
    """The table's sums; bytes of latents and of checkpoints by what the miniature left."""
    home, text = done[0], PAGE.read_text(encoding="utf-8")
    assert 10_000 * 250 * 32 * 18 * 4 * 2 * 2 == pytest.approx(23e9, rel=0.01) and "23 GB" in text
    frames = 40 * 10
    stored = sum(path.stat().st_size for path in (home / "shards/mine_latents").rglob("*.tar"))
    assert stored == pytest.approx(frames * 32 * 18 * 4 * 2 * 2, rel=0.05)
    assert 407_482_384 * 18 == pytest.approx(7.3e9, rel=0.01) and 7 * 7.3 == pytest.approx(51, rel=0.01)
    saved = sum(path.stat().st_size for path in (home / "runs/mine/checkpoints").glob("*2/*.distcp"))
    small = load_config(home / "runs/mine/config.toml")
    count = sum(component_parameters(parameter_table(small), small.model, 4).values())
    assert saved == pytest.approx(18 * count, rel=0.05)
    assert round(2.5e6 / (130 * 32)) == 601 and round(64 * 24 / 0.355, -2) == 4300 and round(4300 / 130) == 33
    assert 40_000 * 64 * 24 == pytest.approx(61e6, rel=0.01) and 40_000 * 64 // 10_000 == 256
