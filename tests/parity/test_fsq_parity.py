"""The tokenizer, its quantizer and the measures of evaluation against recorded numbers of the original, and that the
comparison can fail.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.fsq import FSQCodec, ids_of
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.objective.recorded import Cases, Report
from tools.parity import nbp
from tools.parity.nbp_tokenizer import toy_tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDER = Path(os.environ.get("MVG_REFERENCE_NBP") or GOLDEN / "nbp")
QUANTITIES = {"bounded", "codes", "indices", "quantizer gradients", "encoded", "tokenizer parts", "released tokenizer"}
MEASURES = {"resize and crop", "Frechet distance", "PSNR", "texts", "text ids"}

FAILED = (("text ids", "Archery"), ("texts", "ApplyEyeMakeup"))
"""Of texts changed by hand."""


def compared(folder: Path) -> tuple[Report, list[str]]:
    report = Report(nbp.LIMITS)
    return report, nbp.check_folder(folder, report)


def test_every_recorded_case() -> None:
    report, unchecked = compared(FOLDER)
    assert report.failures() == []
    assert QUANTITIES | MEASURES <= set(report.worst)
    # Files that nothing checks are named, not passed over.
    assert unchecked == []


def test_the_kind_of_a_folder(tmp_path: Path) -> None:
    assert nbp.is_kind(FOLDER) and not nbp.is_kind(GOLDEN)
    shutil.copy(GOLDEN / "loss.json", tmp_path)
    assert not nbp.is_kind(tmp_path)
    shutil.copy(FOLDER / "evaluation.json", tmp_path)
    assert nbp.is_kind(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [
        ("fsq", "levels_888555.bounded", "bounded"),
        ("fsq", "levels_888555.grad_z", "quantizer gradients"),
        ("tokenizer", "small_codes.encoded", "encoded"),
        ("tokenizer", "small_codes.codes", "codes"),
        ("tokenizer_parts", "up_222.y", "tokenizer parts"),
        ("tokenizer_parts", "norm.swished", "tokenizer parts"),
        ("evaluation", "tall.y", "resize and crop"),
        ("evaluation", "psnr.psnr", "PSNR"),
    ],
)
def test_a_wrong_number_fails(file: str, key: str, quantity: str, tmp_path: Path) -> None:
    for name in (f"{file}.json", f"{file}.safetensors"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    for checkpoint in FOLDER.glob("tiny_tok*"):
        (tmp_path / checkpoint.name).symlink_to(checkpoint)
    tensors = load_file(tmp_path / f"{file}.safetensors")
    tensors[key].view(-1)[0] += 1e-3 * tensors[key].abs().max()
    save_file(tensors, tmp_path / f"{file}.safetensors")
    report, _ = compared(tmp_path)
    assert [line.split(":")[0] for line in report.failures()] == [quantity]


def test_released_keys_are_compared(tmp_path: Path) -> None:
    content = json.loads((FOLDER / "released_model.json").read_text())
    content["tokenizer"]["keys"]["decoder_layers.0.conv.weight"][0] += 1
    (tmp_path / "released_model.json").write_text(json.dumps(content))
    (tmp_path / "fsq.json").write_text('{"cases": []}')
    assert compared(tmp_path)[0].failures() == ["released tokenizer: 1 in case keys and shapes, limit 0"]


def test_a_wrong_text_or_id_fails(tmp_path: Path) -> None:
    content = json.loads((FOLDER / "ucf101_text.json").read_text())
    content["classes"]["ApplyEyeMakeup"]["text"] = "applyeye makeup"
    content["classes"]["Archery"]["ids"][-1] = 0
    (tmp_path / "ucf101_text.json").write_text(json.dumps(content))
    failed = compared(tmp_path)[0].failures()
    assert failed == [f"{what}: 1 in case {where}, limit 0" for what, where in FAILED], failed


def test_the_codec_gives_the_recorded_codes(tmp_path: Path) -> None:
    """From pixels in [-1, 1], as training has them."""
    cases = Cases(FOLDER, "tokenizer")
    for case in cases:
        toy_tokenizer(FOLDER / case["checkpoint"]).save_pretrained(tmp_path / case["checkpoint"])
        codec = build_codec(CodecConfig("fsq", str(tmp_path / case["checkpoint"]), batch_size=4))
        assert isinstance(codec, FSQCodec)
        for number, video in enumerate(cases.get(case, "video")):
            codes, _ = codec.encode(video.transpose(0, 1) * 2 - 1)
            assert torch.equal(codes.transpose(0, 1), cases.get(case, "codes")[number])
            assert torch.equal(ids_of(codes, codec.levels).int(), cases.get(case, "indices")[number])
