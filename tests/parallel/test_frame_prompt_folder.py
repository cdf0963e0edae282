"""The factorised network of frame as prompt: a folder through a checkpoint of two processes, training from it, and
videos of the run and of the folder that it became.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.frame_prompt_folders import TEXT, hub_folder, same_bytes

from .launch import REPOSITORY, cli, interpreter, run

pytest.importorskip("transformers", reason="exported folders need transformers (the extra hub)")
SIZES = {"hidden_size": 32, "num_heads": 2}
OPTIONS = """objective.name=frame_prompt_diffusion objective.network=factorised objective.prompts=[1,2,4]
objective.chunk=2 objective.factorised.places=8 objective.factorised.enhance_frames=2 data.frames=8 data.clips=[1,1]
model.norm=layer model.activation=gelu_tanh model.biases=true model.positions=none model.norm_epsilon=1e-6
model.num_layers=2 model.hidden_size=32 model.ffn_hidden_size=128 model.num_attention_heads=2 model.num_query_groups=0
data.physics.size=48 train.steps=1 train.global_batch_size=2 checkpoint.every=0 optimizer.ema_decay=0.5
sample.cache=false sample.history=1""".split()


def converted(command: str, source: Path, output: Path, *more: object) -> None:
    result = run(interpreter("tools/convert_checkpoint.py", command, source, "--output", output, *more))
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, the run that two processes made of it, the folder again, and a step of training from the run; the first
    three of a network with text, too.
    """
    place = tmp_path_factory.mktemp("frame_prompt_folder")
    hub_folder(place / "given", vae=True, **SIZES)
    converted("from-hf", place / "given", place / "run", "--tensor", 2)
    converted("to-hf", place / "run", place / "back")
    hub_folder(place / "given text", **TEXT)
    converted("from-hf", place / "given text", place / "run text", "--tensor", 2)
    converted("to-hf", place / "run text", place / "back text")
    told = (f"train.init_from={place / 'run'}", f"train.output={place / 'tuned'}")
    result = cli("train", str(REPOSITORY / "tests" / "parallel" / "tiny.toml"), *OPTIONS, *told)
    assert result.returncode == 0, result.stderr
    return place


@pytest.mark.parametrize("kind", ["", " text"])
def test_it_comes_back_from_tp2(work: Path, kind: str) -> None:
    assert len(list((work / f"run{kind}" / "checkpoints" / "step_00000000").glob("__1_*.distcp"))) > 0
    same_bytes(*(load_file(work / f"{name}{kind}" / "model.safetensors") for name in ("given", "back")))


def test_the_run_and_its_folder_make_the_same_video(work: Path, tmp_path: Path) -> None:
    how = ("--scene", "bounce/3", "--history", "2", "--clips", "2", "--steps", "2", "--formats", "latents")
    made = []
    for name in ("run", "back"):
        result = cli("sample", "--checkpoint", str(work / name), "--output", str(tmp_path / name), *how)
        assert result.returncode == 0, result.stderr
        made.append(load_file(tmp_path / name / "bounce_3.safetensors")["generated"])
    assert made[0].shape == (2, 16, 4, 4) and made[0].isfinite().all() and torch.equal(*made)


def test_what_was_trained_goes_out_as_it_is(work: Path, tmp_path: Path) -> None:
    """Weights, their average, and tables of the size that it was trained at; what nothing reads fits no more."""
    converted("to-hf", work / "tuned", tmp_path / "plain")
    converted("to-hf", work / "tuned", tmp_path / "average.pt", "--weights", "average")
    given, plain = (load_file(place / "model.safetensors") for place in (work / "given", tmp_path / "plain"))
    average = torch.load(tmp_path / "average.pt", weights_only=True)
    assert given.keys() == plain.keys() == average.keys()
    settings = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (settings["input_size"], settings["chunk"], settings["in_channels"]) == ([6, 6], 2, 16)
    assert plain["pos_embed"].shape == (1, 9, 32) and not plain["bov_token"].any()
    trained = [key for key in given if key not in ("pos_embed", "bov_token")]
    moved = {key for key in trained if not torch.equal(given[key], plain[key])}
    assert "blocks.1.attn_cf.proj.weight" in moved and "pos_embed_temporal" not in moved
    for key in moved:
        # optimizer.ema_decay is a half, and there was one step.
        torch.testing.assert_close(average[key], (given[key] + plain[key]) / 2, rtol=1e-6, atol=1e-7)
    converted("from-hf", tmp_path / "plain", tmp_path / "run")
    converted("to-hf", tmp_path / "run", tmp_path / "again")
    same_bytes(load_file(tmp_path / "again" / "model.safetensors"), plain)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == settings
