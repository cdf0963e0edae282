"""Training a tokenizer against its discriminators: as plain PyTorch does it, in one process and in two, and
killed before the discriminators start and resumed after.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.hub.common.fsq_tokenizer import FSQTokenizer
from megatron_videogpt.objective.tokenizer.discriminators import Discriminators
from tests.loading import loader_of
from tests.tokenizer_twin import Trainer

from .launch import REPOSITORY, cli, interpreter, kill_tree, run, start, torchrun, torchrun_command

CONFIG = str(REPOSITORY / "tests" / "parallel" / "tokenizer.toml")
STEPS, STARTS = 10, 6
TIMES = ("step_time", "data_wait", "encode_time", "encode_wait", "tokens_per_second", "tflops_per_device")
TIMES += ("memory_peak_gib", "mfu", "hfu")


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of a run's metrics.jsonl, those of steps, without what the clock says."""
    read = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    drop = (*TIMES, "time", "slowest", "slowest_seconds", "mean_seconds")
    return [{name: value for name, value in line.items() if name not in drop} for line in read if "loss" in line]


def train_command(folder: Path, *options: str) -> list[str]:
    return ["-m", "megatron_videogpt", "train", CONFIG, f"train.output={folder}", *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data parallel processes, undisturbed; the validation loss before and after."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    torchrun(2, *train_command(folder, f"eval.every={STEPS}"))
    return folder


@pytest.fixture(scope="module")
def twin() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Numbers of all steps, and the average after four of them."""
    from megatron_videogpt.objective.tokenizer import networks

    config = load_config(CONFIG)
    codec, options = build_codec(config.codec), config.objective
    nets = FSQTokenizer(networks.shape_of(config)), Discriminators(4, 6, options.layers)
    for net, begin in zip(nets, (networks.start_tokenizer(config), networks.start_adversary(config))):
        chunk = nn.Module()
        chunk.net = net
        begin([chunk], config.train.seed)
    trainer, source, found = Trainer(config, *nets), loader_of(open_source(config.data, codec), codec, config), []
    for number in range(STEPS):
        batches = [[sample.mean for sample in row.samples] for row in next(source)]
        rows = [(torch.stack(batch).transpose(1, 2) + 1) / 2 for batch in batches]
        found.append(trainer.step(number, rows))
        if number == 3:
            average = {name: value.clone() for name, value in trainer.average.items()}
    source.close()
    return found, average


def test_both_networks_are_those_of_plain_torch(whole: Path, twin: Any) -> None:
    found = lines(whole)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, wanted in zip(found, twin[0]):
        assert {"fooling" in line, "right_on_real" in line} == {line["step"] >= STARTS}
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (line["step"], name)
    assert found[-1]["discriminator_skipped_steps"] == 0 and (whole / "loss.png").is_file()


def test_validation_sees_whole_frames_and_more_numbers(whole: Path) -> None:
    read = map(json.loads, (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    before, after = [line for line in read if "validation_loss" in line]
    for line in (before, after):
        assert -1 < line["validation_ssim"] < 1 and 1 <= line["validation_codes_of_a_clip"] <= 8
        assert "validation_fooling" not in line
    assert after["validation_psnr"] > before["validation_psnr"]


def test_the_average_follows(whole: Path, twin: Any, processes: None) -> None:
    from megatron.core import dist_checkpointing

    held = dist_checkpointing.load_plain_tensors(str(whole / "checkpoints" / "step_00000004"))
    for name, value in twin[1].items():
        torch.testing.assert_close(held[f"parts.average.net.{name}"], value, rtol=1e-5, atol=1e-6)
        assert held[f"net.{name}"].shape == value.shape


def test_one_process_is_as_two(whole: Path, tmp_path: Path) -> None:
    result = cli(*train_command(tmp_path / "run")[2:])
    assert result.returncode == 0, result.stderr
    for one, two in zip(lines(tmp_path / "run"), lines(whole), strict=True):
        assert one.keys() == two.keys()
        for name, value in two.items():
            assert one[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (two["step"], name)


def killed_early(folder: Path) -> bool:
    """Start a run, kill it once it has a checkpoint; whether that was before the discriminators' first."""
    process = start(torchrun_command(2, *train_command(folder)))
    deadline = time.monotonic() + 300
    try:
        while not (folder / "checkpoints" / "step_00000002" / "state.json").is_file():
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline, "training did not get to the checkpoint"
            time.sleep(0.005)
    finally:
        kill_tree(process)
        process.communicate(timeout=100)
    return not (folder / "checkpoints" / f"step_{STARTS:08d}").exists()


def test_killed_before_the_discriminators_start_and_resumed(whole: Path, tmp_path: Path) -> None:
    """Bit for bit, whatever of the steps after the newest checkpoint is done again."""
    # Four steps are short on a busy machine: another try where this process slept through them.
    folder = next((path for path in (tmp_path / f"run{n}" for n in range(3)) if killed_early(path)), None)
    assert folder is not None, "killed too late, three times"
    torchrun(2, *train_command(folder))
    assert lines(folder) == lines(whole)


def test_a_run_becomes_a_codec_that_is_measured(whole: Path, twin: Any, tmp_path: Path) -> None:
    """The average by default; numbers and a picture in the run's folder."""
    folder, bare = tmp_path / "folder", tmp_path / "trained"
    at = "--step", "4"
    made = run(interpreter("tools/convert_tokenizer.py", whole, "--output", folder, *at))
    assert made.returncode == 0 and "average weights of step 4" in made.stdout, made.stderr
    assert (
        run(interpreter("tools/convert_tokenizer.py", whole, "--output", bare, "--weights", "trained")).returncode == 0
    )
    found, trained = (FSQTokenizer.from_pretrained(path).state_dict() for path in (folder, bare))
    for name, value in twin[1].items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(trained[name], value) for name, value in found.items())
    codec = build_codec(CodecConfig("fsq", str(folder)))
    assert codec.encode(torch.rand(5, 3, 16, 16))[0].shape == (2, 3, 2, 2)
    result = run(interpreter("tools/measure_tokenizer.py", folder, "--run", whole, "--samples", "3"))
    assert result.returncode == 0 and "3 videos of 5 frames: PSNR" in result.stdout, result.stderr
    told = json.loads((whole / "reconstruction.json").read_text(encoding="utf-8"))
    assert told["codebook"]["tokens"] == 3 * 8 and (whole / "reconstruction.png").stat().st_size > 1000
