"""Folders through checkpoints of four processes and back, predictions at TP2 against the stand-alone model, and
training from a converted run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_videogpt.config.load import load_config
from megatron_videogpt.convert import ingest, mapped, settings
from megatron_videogpt.convert.conditions import condition_of
from megatron_videogpt.convert.folder import Folder
from tests import dense
from tests.conversion import (
    CONDITIONS,
    MODELS,
    TINY,
    condition_tensors,
    folder_of,
    ignore,
    same,
    tensors_of,
    to_folder,
    to_run,
)
from tests.hub_folder import HINTS
from tests.next_block_folders import BLOCKS, block_folder
from tests.parity.test_conditions import prefix_of

from .launch import REPOSITORY, cli, torchrun

# The dtype concerns no shape, so that one model is enough for bf16.
CASES = [*((name, "fp32") for name in (*MODELS, *CONDITIONS)), ("grouped-query", "bf16")]
DATA = REPOSITORY / "tests" / "parallel" / "tiny.toml"
pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, processes: None) -> Path:
    """All folders and the checkpoints that four processes made of them, in one launch."""
    from megatron_videogpt.convert import mapped_codec

    work, tasks = tmp_path_factory.mktemp("convert"), []
    for name, dtype in CASES:
        place = work / f"{name} {dtype}"
        fields, tiny = CONDITIONS.get(name, {}), MODELS.get(name, TINY)
        extra = condition_tensors(fields) if fields else {}
        folder_of(place / "folder", tiny, tensors_of(tiny, dtype) | extra, **fields)
        (place / "run" / "checkpoints" / "step_00000000").mkdir(parents=True)
        tasks.append(
            {
                "folder": str(place / "folder"),
                "run": str(place / "run"),
                "predict": str(place / "prediction.safetensors"),
            }
        )
    for name in BLOCKS:
        place = work / name
        folder, run = block_folder(place / "folder", name), place / "run"
        (run / "checkpoints" / "step_00000000").mkdir(parents=True)
        released = mapped.released_in(folder)
        assert released is not None
        mapped_codec.bring(released, folder, None, mapped_codec.place_of(run, released), (), 0)
        tasks.append({"folder": str(folder), "run": str(run), "predict": ""})
    (work / "tasks.json").write_text(json.dumps(tasks))
    torchrun(4, str(REPOSITORY / "tests" / "parallel" / "convert_worker.py"), str(work / "tasks.json"))
    return work


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_tensor_comes_back_from_tp2_pp2(
    written: Path, tmp_path: Path, processes: None, name: str, dtype: str
) -> None:
    from megatron_videogpt.convert import new_run

    place, codec = written / f"{name} {dtype}", settings.codec_of(None)
    # Four files or more: all ranks of the layout have written.
    ranks = {path.name.split("_")[2] for path in (place / "run" / "checkpoints" / "step_00000000").glob("__*.distcp")}
    assert ranks == {"0", "1", "2", "3"}
    source = ingest.open_source(Folder(place / "folder"), codec, None, None, False)
    new_run.finish(source, new_run.run_config(source, codec, place / "run", 2, 2), place / "run", None, ignore)
    same(to_folder(place / "run", tmp_path / "back"), load_file(place / "folder" / "model.safetensors"))
    original, back = (
        json.loads((folder / "config.json").read_text()) for folder in (place / "folder", tmp_path / "back")
    )
    assert original.items() <= back.items()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_predictions_at_tp2(written: Path, processes: None, name: str, dtype: str) -> None:
    from megatron_videogpt.convert import forward

    place = written / f"{name} {dtype}"
    ours = load_file(place / "prediction.safetensors")["prediction"]
    assert forward.relative_error(ours, forward.of_folder(place / "folder", HINTS)) < 2e-5
    # And the independent implementation of the tests.
    model, channels = ingest.sizes_of(Folder(place / "folder"))
    noisy, clean, t = forward.random_input(model, channels)
    weights = {key: value.float() for key, value in load_file(place / "folder" / "model.safetensors").items()}
    weights["llm.embed_tokens.weight"] = weights["llm.embed_tokens.weight"][list(HINTS)]
    # Nobody predicts with dropout.
    tiny = replace(MODELS.get(name, TINY), dropout=0.0)
    told = forward.random_condition(condition_of(CONDITIONS.get(name, {}), "config.json"))
    prefix = None if told is None else prefix_of(weights, told)
    theirs = dense.forward(weights, tiny, list(forward.CLIPS), noisy, clean, t, prefix=prefix)
    assert forward.relative_error(ours, theirs) < 2e-5
    assert (prefix is None) == (name in MODELS)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_come_back_from_tp2_pp2(written: Path, tmp_path: Path, processes: None, name: str) -> None:
    """Separate queries, keys and values, and a vocabulary that no two ranks divide."""
    from megatron_videogpt.convert import mapped_codec, mapped_run
    from megatron_videogpt.convert.mapped_export import MappedExport, write_folder

    folder, run = written / name / "folder", written / name / "run"
    released = mapped.released_in(folder)
    assert released is not None
    source = mapped.open_source(folder, released, mapped_codec.place_of(run, released), {}, None, False)
    mapped_run.finish(source, mapped_run.run_config(source, run, 2, 2), run, ignore)
    assert load_config(run / "config.toml").parallel.pipeline == 2
    export = MappedExport(run, released, None, False, None)
    write_folder(export, tmp_path / "back", 10**9, export.codec(None), None, ignore)
    same(load_file(tmp_path / "back" / "model.safetensors"), load_file(folder / "model.safetensors"))
    original, back = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "back"))
    assert original.items() <= back.items()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, processes: None) -> Path:
    """A folder with the tiny codec's channels, the run it became, and two steps of training from it."""
    work = tmp_path_factory.mktemp("tuned")
    tiny = dense.Tiny(width=32, ffn=48, table=8, channels=16, groups=2)
    folder_of(work / "folder", tiny, tensors_of(tiny, "fp32"))
    to_run(work / "folder", work / "run")
    options = (
        f"train.init_from={work / 'run'}",
        f"train.output={work / 'tuned'}",
        "train.steps=2",
        "optimizer.ema_decay=0.5",
        "optimizer.warmup_steps=0",
    )
    result = cli("train", str(DATA), *options)
    assert result.returncode == 0, result.stderr[-3000:]
    return work


def test_training_carries_on_what_travels_along(tuned: Path, tmp_path: Path) -> None:
    given = load_file(tuned / "folder" / "model.safetensors")
    trained = to_folder(tuned / "tuned", tmp_path / "trained")
    assert trained.keys() == given.keys()
    for key in ("pos_embed", "lm_head.weight"):
        assert torch.equal(trained[key], given[key])
    others = [row for row in range(6) if row not in HINTS]
    assert torch.equal(trained["llm.embed_tokens.weight"][others], given["llm.embed_tokens.weight"][others])
    assert not torch.equal(
        trained["llm.embed_tokens.weight"][list(HINTS)], given["llm.embed_tokens.weight"][list(HINTS)]
    )
    changed = [key for key in given if not torch.equal(trained[key], given[key])]
    assert len(changed) == len(given) - 2
    assert (tmp_path / "trained" / "LICENSE").is_file() and (tmp_path / "trained" / "vae" / "config.json").is_file()
    assert str(tuned) not in (tmp_path / "trained" / "videogpt_config.toml").read_text()
    averaged = to_folder(tuned / "tuned", tmp_path / "averaged", average=True)
    # Half way between the first step's average and the last weights, so nearer to the start.
    key = "llm.layers.0.mlp.down_proj.weight"
    assert 0 < float((averaged[key] - given[key]).norm()) < float((trained[key] - given[key]).norm())


def test_a_run_that_never_had_a_text_table(tuned: Path, tmp_path: Path) -> None:
    """Without released/ a checkpoint is one that was trained from scratch."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tuned / "tuned" / "checkpoints")
    made = to_folder(tmp_path / "run", tmp_path / "made")
    table = made["llm.embed_tokens.weight"]
    trained = to_folder(tuned / "tuned", tmp_path / "trained")
    assert (
        torch.equal(table[1:], trained["llm.embed_tokens.weight"][list(HINTS)])
        and len(table) == 4
        and not table[0].any()
    )
    assert torch.allclose(made["pos_embed"], trained["pos_embed"], atol=1e-6) and "lm_head.weight" not in made
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["img_end_token_id"], config["longest_side"]) == (
        "videogpt",
        4,
        3,
        32,
    )
    codec = settings.codec_of(tmp_path / "made" / "vae")
    assert codec.name == "tiny"
    to_run(tmp_path / "made", tmp_path / "again", codec=codec)
    assert json.loads((tmp_path / "again" / "checkpoints" / "step_00000000" / "state.json").read_text())["codec"]
    same(to_folder(tmp_path / "again", tmp_path / "back"), made)
