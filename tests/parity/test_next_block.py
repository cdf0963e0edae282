"""The transformer of next block prediction against recorded numbers of the original, in one process and split over two,
and that the comparison can fail.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from megatron_videogpt.objective.recorded import Report
from tests.parallel.launch import REPOSITORY, run
from tools.parity import nbp, nbp_transformer

from .test_fsq_parity import FOLDER

PIXELS = {"given codes", "decoded video"}
"""Of the tokenizer with its decoder, which the folder of this project lacks."""
TOOL = str(REPOSITORY / "tools" / "check_parity.py")


def linked(folder: Path, *files: str) -> Path:
    """A folder with the transformers and these files of cases only."""
    for path in FOLDER.iterdir():
        if path.is_dir() or path.stem in files:
            (folder / path.name).symlink_to(path)
    return folder


def compared(folder: Path) -> Report:
    report = Report(nbp_transformer.limits())
    nbp_transformer.check_transformer(folder, 1, "ranged", report)
    return report


@pytest.mark.usefixtures("processes")
def test_every_recorded_case() -> None:
    report = compared(FOLDER)
    assert report.failures() == []
    assert report.compared.keys() | PIXELS == nbp_transformer.limits().keys()


def test_the_same_split_over_two(tmp_path: Path) -> None:
    """The vocabulary too, of 73 ids in one checkpoint."""
    folder = linked(tmp_path, *nbp.TRANSFORMER)
    result = run([sys.executable, TOOL, str(folder), "--tensor-parallel", "2"])
    assert result.returncode == 0, result.stdout + result.stderr
    for quantity in nbp_transformer.limits().keys() - PIXELS:
        assert any(line.startswith(f"{quantity} ") for line in result.stdout.splitlines()), quantity


def more(value: float) -> float:
    return value * (1 + 1e-3)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("file", "change", "quantity"),
    [
        ("masks_targets", "hybrid4.targets", "targets"),
        ("masks_targets", "hybrid4.ends", "masks"),
        ("masks_targets", "block4.input_ids", "ids"),
        ("forward", "hybrid.logits", "forward"),
        ("loss", "row.nll", "loss per token"),
        ("loss", lambda case: case.update(loss=more(case["loss"])), "loss"),
        ("loss", lambda case: case["grad_norm"].update({"transformer.ln_f.bias": 1.0}), "gradient norms"),
        ("train_steps", lambda case: case["loss"].__setitem__(3, more(case["loss"][3])), "training steps"),
        ("sampler", "row_noise.sampled_ids", "sampled ids"),
        ("sampler", "hybrid_guided_scaled.logits_uncond", "sampler logits"),
        ("recipe", lambda case: case["lr"].__setitem__(2, more(case["lr"][2])), "learning rates"),
    ],
)
def test_a_wrong_number_fails(
    file: str, change: str | Callable[[dict[str, Any]], None], quantity: str, tmp_path: Path
) -> None:
    folder = linked(tmp_path, file)
    path = folder / f"{file}.json"
    content = json.loads(path.read_text())
    if isinstance(change, str):
        tensors, stored = load_file(path.with_suffix(".safetensors")), path.with_suffix(".safetensors")
        name = change.partition(".")[0]
        content["cases"] = [case for case in content["cases"] if case["name"] == name]
        tensors[change].view(-1)[-1] += 1
        stored.unlink()
        save_file(tensors, stored)
    else:
        content["cases"] = content["cases"][:1]
        change(content["cases"][0])
    path.unlink()
    path.write_text(json.dumps(content))
    failed = [line.split(":")[0] for line in compared(folder).failures()]
    # A mask's number of pairs is also told in closed form, and the sampler goes with a cache and without.
    also = {"masks": ["closed forms"], "sampler logits": ["sampler logits without cache"]}
    assert failed == [quantity, *also.get(quantity, [])]
