"""Recorded numbers of next block prediction and its tokenizer (tests/golden/nbp/README.md): which file is checked by
what, and how far numbers may be off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_videogpt.objective.recorded import Cases, Report

LIMITS = {
    "codes": 0.0,
    "indices": 0.0,
    "bounded": 1e-6,
    "quantizer gradients": 1e-6,
    "encoded": 5e-5,
    "reconstruction": 5e-5,
    "tokenizer layers": 5e-5,
    "tokenizer parts": 5e-5,
    "tokenizer mse": 1e-5,
    "tokenizer gradients": 5e-4,
    "released tokenizer": 0.0,
    "resize and crop": 1e-5,
    "Frechet distance": 1e-10,
    "PSNR": 1e-6,
    "texts": 0.0,
    "text ids": 0.0,
}
"""Fractions of the recorded tensor's largest absolute value; of scalars and norms relative; of codes, indices, keys
and texts the number that differ.
"""
TRANSFORMER = ("masks_targets", "forward", "loss", "train_steps", "recipe", "sampler")
"""Files of the transformer, which are checked through the megatron-core model, in any tensor parallel size."""


def is_kind(folder: Path) -> bool:
    """Whether a folder is of this kind: one of its files that other kinds do not have is there."""
    shared = ("loss", "sampler", "released_model")
    return any((folder / f"{name}.json").is_file() for name in {*_checks(), *TRANSFORMER} - {*shared})


def check_folder(folder: Path, report: Report) -> list[str]:
    """Every case of every file but the transformer's; the names of files that nothing checks yet."""
    from megatron_videogpt.objective.recorded import Cases

    for name, check in _checks().items():
        if (folder / f"{name}.json").is_file():
            check(Cases(folder, name), report)
    known = {*_checks(), *TRANSFORMER}
    others = sorted(path.stem for path in folder.glob("*.json") if path.stem not in known)
    return [name for name in others if _has_cases(folder / f"{name}.json")]


def _has_cases(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "cases" in content


def _checks():  # type: ignore[no-untyped-def]
    from tools.parity import nbp_tokenizer

    return {
        "fsq": nbp_tokenizer.check_quantizer,
        "tokenizer": nbp_tokenizer.check_tokenizer,
        "tokenizer_parts": nbp_tokenizer.check_parts,
        "released_model": nbp_tokenizer.check_released,
        "evaluation": check_evaluation,
        "ucf101_text": check_texts,
    }


def check_evaluation(cases: Cases, report: Report) -> None:
    """Every case of evaluation.json: FVD's preparation of frames, Fréchet distance, PSNR."""
    from megatron_videogpt.evaluate.metrics import frechet_distance, psnr, resize_crop

    for case in cases:
        name, tensors = case["name"], {key: cases.get(case, key) for key in case["tensors"]}
        if case["kind"] == "resize_crop":
            ours = resize_crop(tensors["x"], case["resolution"], case["normalize"])
            report.compare("resize and crop", ours, tensors["y"], name)
        elif case["kind"] == "frechet":
            distance = frechet_distance(tensors["fake"], tensors["real"])
            report.add("Frechet distance", abs(distance - case["value"]) / case["value"], name)
        elif case["kind"] == "psnr":
            report.compare("PSNR", psnr(tensors["a"], tensors["b"]), tensors["psnr"], name)
        else:
            report.add(f"unknown kind {case['kind']!r}", float("inf"), name)


def check_texts(cases: Cases, report: Report) -> None:
    """Every class of ucf101_text.json: its text, and its ids around those of the words; which words have which ids is
    the tokenizer's, which is not part of what was recorded.
    """
    from megatron_videogpt.condition.captions import words_of
    from megatron_videogpt.condition.ids import framed
    from megatron_videogpt.condition.options import ConditionConfig

    meta, tokens = cases.meta, ConditionConfig().tokens
    report.add("text ids", float(meta["length"] != tokens), "length")
    start, padding = meta["start_id"], meta["pad_id"]
    for folder, recorded in meta["classes"].items():
        ids = recorded["ids"]
        inside = [number for number in ids if number not in (start, padding)]
        report.add("texts", float(words_of(folder) != recorded["text"]), folder)
        report.add("text ids", float(framed(inside, start, padding, tokens) != ids), folder)
