"""Recorded numbers of next block prediction and its tokenizer (tests/golden/nbp/README.md): which file is checked by
what, and how far numbers may be off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_videogpt.objective.recorded import Report

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
}
"""Fractions of the recorded tensor's largest absolute value; of scalars and norms relative; of codes, indices and keys
the number that differ.
"""
TRANSFORMER = ("masks_targets", "forward", "loss", "train_steps", "recipe", "sampler")
"""Files of the transformer, which are checked through the megatron-core model, in any tensor parallel size."""
TO_COME = ("ucf101_text",)
"""Files of the transformer that nothing checks yet."""


def is_kind(folder: Path) -> bool:
    """Whether a folder is of this kind: one of its files that other kinds do not have is there."""
    shared = ("loss", "sampler", "released_model")
    return any((folder / f"{name}.json").is_file() for name in {*_checks(), *TRANSFORMER, *TO_COME} - {*shared})


def check_folder(folder: Path, report: Report) -> list[str]:
    """Every case of every file but the transformer's; the names of files that nothing checks yet."""
    from megatron_videogpt.objective.recorded import Cases

    for name, check in _checks().items():
        if (folder / f"{name}.json").is_file():
            check(Cases(folder, name), report)
    known = {*_checks(), *TRANSFORMER}
    others = sorted(path.stem for path in folder.glob("*.json") if path.stem not in known)
    return [name for name in others if name in TO_COME or _has_cases(folder / f"{name}.json")]


def _has_cases(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "cases" in content


def _checks():  # type: ignore[no-untyped-def]
    from tools import parity_evaluation, parity_tokenizer

    return {
        "fsq": parity_tokenizer.check_quantizer,
        "tokenizer": parity_tokenizer.check_tokenizer,
        "tokenizer_parts": parity_tokenizer.check_parts,
        "released_model": parity_tokenizer.check_released,
        "evaluation": parity_evaluation.check_evaluation,
    }
