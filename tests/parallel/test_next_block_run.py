"""A run of next block prediction behind texts, by the command line: killed and resumed in its layout and in others,
sampled by the command and by the exported pipeline, and one line for what does not fit it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from megatron_videogpt.codec.fsq import ids_of
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape
from tests.texts import text_ids
from tests.tokenizer import SMALL, saved

from .launch import cli, interpreter, run
from .reshard_worker import contents
from .test_resume import CONFIG, TP2, kill_after, losses, newest, train
from .test_text_ids import OPTIONS, PIECES

GPT = """model.norm=layer model.activation=gelu model.biases=true model.positions=learned model.dropout=0.1
model.max_position_embeddings=64 condition.dropout=0.3 checkpoint.every=4 parallel.tensor=1""".split()
TEXTS = ("a red ball falls", "three blue bodies")
# After 14 steps texts hardly matter: guidance tells them apart.
SAMPLED = ("--clips", "3", "--temperature", "0", "--guidance-ratio", "300", "--formats", "latents")


def options(work: Path, **others: Path) -> list[str]:
    places = {"codec": work / "codec", "ids": work / "ids", **others}
    return [*OPTIONS, *GPT, f"codec.path={places['codec']}", f"condition.encoder_path={places['ids']}"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers, a run of 14 steps in two processes, `whole`, and the same `killed` behind its first checkpoint."""
    folder = tmp_path_factory.mktemp("next_block_run")
    saved(folder / "codec", SMALL)
    text_ids(folder / "ids", PIECES)
    train(2, folder / "whole", *options(folder), *TP2, "eval.every=14", "eval.samples=4")
    kill_after(folder / "killed", 5, *options(folder), *TP2)
    assert newest(folder / "killed") in ("step_00000004", "step_00000008")
    return folder


@pytest.mark.usefixtures("processes")
def test_a_killed_run_resumes_bit_for_bit(work: Path, tmp_path: Path) -> None:
    """Losses, and every tensor of the last checkpoint."""
    shutil.copytree(work / "killed", tmp_path / "run")
    assert train(2, tmp_path / "run", *options(work), *TP2) == losses(work / "whole")
    ours, wanted = contents(tmp_path / "run"), contents(work / "whole")
    assert newest(tmp_path / "run") == newest(work / "whole") == "step_00000014"
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("processes", "layout"), [(1, ()), (2, ("parallel.pipeline=2",))], ids=["one", "PP2"])
def test_in_another_layout(work: Path, tmp_path: Path, processes: int, layout: tuple[str, ...]) -> None:
    shutil.copytree(work / "killed", tmp_path / "run")
    resumed, wanted = train(processes, tmp_path / "run", *options(work), *layout), losses(work / "whole")
    assert len(wanted) == 14 and resumed == pytest.approx(wanted, rel=1e-5)


def sampled(source: Path, output: Path) -> list[torch.Tensor]:
    """Ids of the videos of `TEXTS`."""
    texts = [word for text in TEXTS for word in ("--text", text)]
    result = cli("sample", "--checkpoint", str(source), *texts, "--output", str(output), *SAMPLED)
    assert result.returncode == 0, result.stderr
    files = [output / f"{text.replace(' ', '_')}.safetensors" for text in TEXTS]
    return [ids_of(load_file(file)["generated"].float(), SMALL.levels) for file in files]


def test_a_text_is_the_same_video_by_the_command_and_by_the_exported_pipeline(work: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="exported folders need transformers (the extra hub)")
    from megatron_videogpt.hub.next_block.pipeline_nextblock import NextBlockPipeline

    def converted(command: str, source: Path, output: Path) -> None:
        result = run(interpreter("tools/convert_checkpoint.py", command, source, "--output", output))
        assert result.returncode == 0, result.stderr

    converted("to-hf", work / "whole", tmp_path / "hub")
    expected = sampled(work / "whole", tmp_path / "by_run")
    assert not torch.equal(*expected)
    pipeline = NextBlockPipeline.from_pretrained(tmp_path / "hub")
    how = {"temperature": 0, "guidance": 300.0, "output_type": "ids"}
    for found in (
        pipeline(texts=TEXTS, **how),
        pipeline(texts=[[1, 3, 5, 8, 18, 2, 2, 2], TEXTS[1]], **how),
        sampled(tmp_path / "hub", tmp_path / "by_folder"),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # The file of the texts comes along into a run, and back.
    converted("from-hf", tmp_path / "hub", tmp_path / "again")
    converted("to-hf", tmp_path / "again", tmp_path / "back")
    file = Path("text_tokenizer", "tokenizer.json")
    assert (tmp_path / "back" / file).read_bytes() == (work / "ids" / file.name).read_bytes()
    # Another one than the run was trained with does not.
    text_ids(work / "ids", {**PIECES, "▁more": len(PIECES)})
    converted("to-hf", work / "whole", tmp_path / "other")
    text_ids(work / "ids", PIECES)
    assert not (tmp_path / "other" / file).exists()
    alone = NextBlockPipeline.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="no text_tokenizer/tokenizer.json in the folder; give the tokenizer"):
        alone(texts=TEXTS[0])
    for wrong, message in (
        ({}, "texts: this model makes videos of a text"),
        ({"texts": [1, 2]}, "expected 8 ids from 0 to 20"),
        ({"texts": " "}, "a text without any word"),
        ({"class_labels": 1}, "not trained with classes"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**wrong)


def test_runs_side_by_side(work: Path, tmp_path: Path) -> None:
    """The table's errors are those of the sample command; what a run has not recorded is told."""
    tool, kinds = "tools/compare_blocks.py", ("fall", "bounce", "collide", "roll", "pendulum", "dominoes")
    result = run(interpreter(tool, work / "whole", "--scenes", 1, "--output", tmp_path / "out"))
    assert result.returncode == 0 and "moving right" in result.stdout, result.stderr
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["whole"]
    shown = [word for kind in kinds for word in ("--scene", f"{kind}/0")]
    how = ("--temperature", "0", "--formats", "png", "--output", str(tmp_path / "sampled"))
    result = cli("sample", "--checkpoint", str(work / "whole"), *shown, *how)
    assert result.returncode == 0, result.stderr
    reports = [json.loads((tmp_path / "sampled" / f"{kind}_0.json").read_text())["errors"] for kind in kinds]
    for ours, theirs in (("model", "mse_model"), ("repeat_picture", "mse_repeat")):
        assert found["errors"][ours] == pytest.approx(np.mean([one[theirs] for one in reports]), rel=1e-3)
    tokens = found["tokens"]
    assert 0 < tokens["moving"] < 1 and tokens["repeated"] == pytest.approx(1 - tokens["moving"])
    with Image.open(tmp_path / "out" / "scenes_whole.webp") as picture:
        assert picture.n_frames == 9
    result = run(interpreter(tool, work / "killed", "--scenes", 1))
    assert result.returncode == 2 and "no step has 'validation_loss'" in result.stderr


def test_what_does_not_fit_is_one_line(work: Path, tmp_path: Path) -> None:
    """Before any step, with exit code 2."""
    other, none = saved(tmp_path / "other", FSQShape(4, 2, 1, (5, 5, 4))), tmp_path / "none"
    none.mkdir()
    (tmp_path / "short").mkdir()
    for number in range(3):
        write_video(tmp_path / "short" / f"{number}.mp4", np.full((5 + number, 32, 32, 3), 90, np.uint8), 24)
    before = losses(work / "whole")
    same, fresh = f"train.output={work / 'whole'}", f"train.output={tmp_path / 'fresh'}"
    short = ["data.source=videos", f"data.path={tmp_path / 'short'}", "data.size_multiple=32", "data.longest_side=32"]
    short += ["data.max_aspect=1.0", "data.min_side=32"]
    for words, message in (
        ([fresh, *options(work), "data.physics.size=36"], "must be a multiple of the codec's stride 8"),
        ([fresh, *options(work), "objective.block=7"], "objective.block = 7: must divide every video of 3 latent"),
        ([same, *options(work, codec=other), "train.steps=15"], "was trained with another fsq codec"),
        ([same, *options(work), "objective.block=8", "train.steps=15"], "block is 4 there and 8 here, which moves"),
        ([same, *options(work, ids=none), "train.steps=15"], "no tokenizer.json in it"),
        (
            [fresh, *options(work), f"train.init_from={work / 'whole'}", "objective.layout=given_first_block"],
            "objective.layout is hybrid there and given_first_block here, which moves the ids of the codes",
        ),
        ([fresh, *options(work), *short], "none of 3 videos can be used; the first:"),
    ):
        result = cli("train", CONFIG, *words)
        assert result.returncode == 2 and result.stderr.count("error:") == 1, (message, result.stderr)
        assert message in result.stderr, result.stderr
    assert "too short: 5 frames, a sample spans 17" in result.stderr
    asked = ("sample", "--checkpoint", str(work / "whole"), "--output", str(tmp_path / "out"))
    result = cli(*asked, "--text", TEXTS[0], "--text-encoder", str(none))
    assert result.returncode == 2 and result.stderr.count("error:") == 1 and "no tokenizer.json" in result.stderr
    assert losses(work / "whole") == before and not (tmp_path / "out").exists()
