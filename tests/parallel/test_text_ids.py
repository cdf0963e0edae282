"""Captions of scenes as ids before blocks of codes, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.texts import text_ids
from tests.tokenizer import saved

from .launch import REPOSITORY, cli, torchrun

WORDS = "a the red blue green ball box one two three bodies starts on left right falls bounces fast".split()
PIECES = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *(f"▁{word}" for word in WORDS)])}
OPTIONS = """objective.name=next_block_prediction objective.layout=hybrid objective.block=4 codec.name=fsq
model.patch_size=1 data.frames=3 data.clips=[1,1] condition.kind=text condition.encoder=ids checkpoint.every=2
optimizer.schedule=constant checkpoint.async_save=false sample.window=3 sample.guidance=3.0 sample.steps=50""".split()


def test_captions_as_ids_in_one_process_and_in_two(tmp_path: Path) -> None:
    codec, ids, other = saved(tmp_path / "codec"), text_ids(tmp_path / "ids", PIECES), tmp_path / "other"
    text_ids(other, {**PIECES, "▁a": PIECES["▁the"], "▁the": PIECES["▁a"]})

    def command(run: str, steps: int, tokenizer: Path = ids) -> list[str]:
        where = [f"codec.path={codec}", f"condition.encoder_path={tokenizer}", f"train.output={tmp_path / run}"]
        config = str(REPOSITORY / "tests" / "parallel" / "tiny.toml")
        return ["train", config, *OPTIONS, *where, f"train.steps={steps}"]

    def losses(run: str) -> list[float]:
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    alone = cli(*command("one", 3))
    assert alone.returncode == 0, alone.stderr
    torchrun(2, "-m", "megatron_videogpt", *command("two", 2), "parallel.tensor=2")
    state = json.loads((tmp_path / "two" / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert len(state["text_encoder"]) == 64
    # Another file with as many ids is another tokenizer.
    refused = cli(*command("two", 3, other))
    assert refused.returncode == 2 and refused.stderr.count("error:") == 1, refused.stderr
    assert "the text encoder has the fingerprint" in refused.stderr
    again = cli(*command("two", 3))
    assert again.returncode == 0, again.stderr
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5) and len(losses("one")) == 3
