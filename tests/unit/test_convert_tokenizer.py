"""The published tokenizer to a folder and back: the same bits, nothing but tensors unpickled, and one line for what is
none.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.__main__ import main
from megatron_videogpt.hub.common.fsq_tokenizer import FSQTokenizer
from tests.tokenizer import random_tokenizer

SIZES = ("--groups", "2", "--levels", "8", "5", "5")


def published(state: dict[str, Tensor]) -> dict[str, Any]:
    """As the tokenizer's own file has it."""
    return {"epoch": 7, "model_state_dict": OrderedDict((f"module.{key}", value) for key, value in state.items())}


def inside(state: dict[str, Tensor]) -> dict[str, Any]:
    """As a transformer's training checkpoint has it."""
    more = {"transformer.ln_f.weight": torch.ones(3), "transformer.tok_emb.weight": torch.ones(5, 3)}
    content = {"state_dict": more | {f"first_stage_model.{key}": value for key, value in state.items()}}
    return content | {"epoch": 7, "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}], "loops": {}}


def convert(*arguments: object) -> int:
    return main(["convert", "tokenizer", *map(str, arguments)])


def state() -> dict[str, Tensor]:
    """With bits that a conversion could lose: a negative zero, a NaN, a number of no precision."""
    found = {key: value.clone() for key, value in random_tokenizer(seed=5).state_dict().items()}
    found["encoder_layers.0.conv.bias"][:3] = torch.tensor([-0.0, float("nan"), 1e-42])
    return found


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {key: (value.dtype, tuple(value.shape), value.numpy().tobytes()) for key, value in tensors.items()}


@pytest.mark.parametrize("form", [published, inside])
def test_there_and_back(form: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = state()
    torch.save(form(original), tmp_path / "source.pt")
    assert convert(tmp_path / "source.pt", "--output", tmp_path / "folder", *SIZES) == 0
    assert "width 4, 1 units, levels 8 5 5 (200 codes), read back and equal" in capsys.readouterr().out
    assert bits(FSQTokenizer.from_pretrained(tmp_path / "folder").state_dict()) == bits(original)
    assert convert(tmp_path / "folder", "--output", tmp_path / "back.pt") == 0
    held = torch.load(tmp_path / "back.pt", weights_only=True)["model_state_dict"]
    assert bits(held) == bits({f"module.{key}": value for key, value in original.items()})
    assert list(held) == [f"module.{key}" for key in original]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "folder", "source.pt"]


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, key = state(), "decoder_layers.2.fn.0.weight"
    contents: dict[str, tuple[Any, str]] = {
        "more.pt": (published(good) | {"args": Harmful(tmp_path / "harm")}, "a pickle with more than tensors in it"),
        "short.pt": (published({k: v for k, v in good.items() if k != key}), f"weights have nothing for {key}"),
        "other.pt": (published(good | {"quantize.weight": torch.ones(2)}), "weights have 'quantize.weight'"),
        "shape.pt": (published(good | {key: torch.ones(3)}), f"weights have [3] for {key}; expected"),
        "transformer.pt": ({"state_dict": {"transformer.head.weight": torch.ones(2)}}, "holds no FSQ tokenizer"),
        "empty.pt": ({"epoch": 3}, "no tensors under model_state_dict or state_dict; it has 'epoch'"),
        "list.pt": ([torch.ones(2)], "holds list; expected a dictionary"),
    }
    for name, (content, said) in contents.items():
        torch.save(content, tmp_path / name)
        assert convert(tmp_path / name, "--output", tmp_path / "out", *SIZES) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
    (tmp_path / "text.pt").write_text("not a file of tensors")
    torch.save(published(good), tmp_path / "good.pt")
    (tmp_path / "bare").mkdir()
    for source, options, said in (
        ("text.pt", SIZES, "not a file of PyTorch with tensors"),
        ("none.pt", SIZES, "none.pt: not found"),
        ("good.pt", ("--groups", "2"), "a tokenizer of 3 channels, and --levels gives 6"),
        ("good.pt", ("--levels", "8", "5", "5"), "width=4: expected a multiple of groups=32"),
        ("bare", (), "bare/config.json: not found"),
    ):
        assert convert(tmp_path / source, "--output", tmp_path / "out", *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
    assert convert(tmp_path / "good.pt", "--output", tmp_path / "bare", *SIZES) == 2
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists() and not list(tmp_path.glob("out*"))
