"""Folders of text encoders: a line for everything that one can lack, widths without PyTorch, and the rules."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.folder import text_width
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.check_data import missing_paths
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.errors import UserError
from tests.texts import LONGEST, change_settings, options_of, text_clip, text_t5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("texts")
    return {"clip": text_clip(root / "clip"), "t5": text_t5(root / "t5")}


def _bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _other(**settings: Any) -> Any:
    return lambda folder: change_settings(folder, **settings)


def _without_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "q_proj" in name or ".q." in name)
    save_file(
        {key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )


def _spiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"damaged")


MISTAKES = {
    "no config": ("clip", lambda folder: (folder / "config.json").unlink(), "no config.json in it"),
    "damaged config": ("clip", lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "gpt2": ("clip", _other(model_type="gpt2", architectures=["GPT2LMHeadModel"]), "a gpt2 (GPT2LMHeadModel), but"),
    "vae": ("t5", _other(model_type=None, architectures=None, _class_name="AutoencoderKL"), "(AutoencoderKL), but"),
    "t5 for clip": ("clip", _other(model_type="t5", architectures=["T5EncoderModel"]), "needs a CLIPTextModel"),
    "clip for t5": ("t5", _other(model_type="clip_text_model"), "needs a T5EncoderModel"),
    "no width": ("t5", _other(d_model=None), "config.json gives d_model=None"),
    "no tokenizer": ("t5", lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in"),
    "damaged tokenizer": ("t5", lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer in"),
    "pieces": ("t5", _spiece, "spiece.model needs pip install sentencepiece"),
    "only pickles": ("clip", _bin_only, "never loaded; convert them"),
    "no weights": ("t5", lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors in"),
    "cut weights": ("t5", _cut, "model.safetensors is damaged"),
    "too long": ("clip", _other(max_position_embeddings=8), "takes at most 8; use 8 or less"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_a_folder_is_one_line(folders: dict[str, Path], tmp_path: Path, mistake: str) -> None:
    name, change, reason = MISTAKES[mistake]
    folder = Path(shutil.copytree(folders[name], tmp_path / "folder"))
    change(folder)
    with pytest.raises(UserError) as caught:
        build_encoder(options_of(name, folder))
    text = str(caught.value)
    assert reason in text and "\n" not in text and "folder" in text, text


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_weights_that_do_not_fit_are_told_when_they_are_loaded(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    missing = Path(shutil.copytree(folders[name], tmp_path / "missing"))
    _without_tensor(missing)
    with pytest.raises(UserError, match="1 weights are missing") as caught:
        build_encoder(options_of(name, missing)).to("cpu")
    assert "\n" not in str(caught.value)
    shape = Path(shutil.copytree(folders[name], tmp_path / "shape"))
    change_settings(shape, vocab_size=99)
    with pytest.raises(UserError, match="weights do not load into a") as caught:
        build_encoder(options_of(name, shape)).encode(["a"])
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_one_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(options_of("clip", folders["clip"]))
    for call in (encoder.count, encoder.encode):
        with pytest.raises(UserError, match="an empty caption"):
            call(["a", " \n"])
    for options, reason in (
        (options_of("clip"), "condition.encoder_path is empty"),
        (options_of("t5", "no/where"), "no such folder"),
        (options_of("clip", folders["clip"], max_tokens=2), "must be at least 3"),
        (options_of("t5", folders["t5"], max_tokens=1), "must be at least 2"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            build_encoder(options)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the transformers package: pip install transformers"):
        build_encoder(options_of("clip", folders["clip"]))


def test_the_width_is_told_without_pytorch(folders: dict[str, Path]) -> None:
    for options, width in (
        (options_of("clip", folders["clip"]), 32),
        (options_of("t5", folders["t5"]), 24),
        (options_of("words"), 64),
        (options_of("t5", "no/where", width=4096), 4096),
    ):
        assert text_width(options) == width
    for path in ("", "no/where"):
        with pytest.raises(UserError, match="condition.encoder_path"):
            text_width(options_of("clip", path))
    module = importlib.import_module("megatron_videogpt.condition.folder").__name__
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def problems(**condition: Any) -> list[str]:
    """What `check` says of the section."""
    given = {"kind": "text", "max_tokens": LONGEST, **condition}
    lines = find_problems(config_from_dict({"condition": given}), None)
    return [line for line in lines if line.startswith("condition.") and not line.startswith("condition.kind")]


def test_rules_of_text_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    clip = str(folders["clip"])
    for sound in (
        {"encoder": "words"},
        {"encoder": "words", "width": 64},
        {"encoder": "clip", "encoder_path": clip},
        {"encoder": "clip", "encoder_path": clip, "width": 32},
        {"encoder": "t5", "width": 4096},
        {"encoder": "t5", "encoder_path": "not/yet", "width": 4096},
        {"kind": "none"},
    ):
        assert problems(**sound) == [], sound
    for wrong, begin, reason in (
        ({"encoder": "words", "width": 32}, "condition.width = 32", "be 0 or 64"),
        ({"encoder": "clip", "encoder_path": clip, "width": 64}, "condition.width = 64", "be 0 or 32"),
        ({"encoder": "clip"}, "condition.encoder_path", "name a local folder"),
        ({"encoder": "t5", "encoder_path": clip}, "condition.encoder_path", "needs a T5EncoderModel"),
        ({"encoder": "clip", "encoder_path": clip, "max_tokens": 77}, "condition.max_tokens = 77", "the 16 tokens"),
    ):
        (line,) = problems(**wrong)
        assert line.startswith(begin) and reason in line and "\n" not in line, line


def test_a_missing_folder_of_the_encoder_is_named() -> None:
    def missing(source: str, **condition: Any) -> list[str]:
        data = {"source": source, "path": str(Path(__file__).parent)}
        given = {"kind": "text", "encoder": "t5", "encoder_path": "no/t5", **condition}
        return [line.split(": ")[0] for line in missing_paths(config_from_dict({"data": data, "condition": given}))]

    told = ['condition.encoder_path = "no/t5"']
    assert missing("videos") == missing("videos", width=8) == missing("shards") == told
    # Features of shards may have been computed in advance.
    assert missing("shards", width=8) == missing("shards", encoder="words") == missing("shards", kind="class") == []
