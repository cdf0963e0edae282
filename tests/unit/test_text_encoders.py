"""Text encoders: their numbers against the models themselves, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_videogpt.condition import digests
from megatron_videogpt.condition.base import TextEncoder
from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.folder import WORDS_WIDTH, fingerprint_of, text_width
from megatron_videogpt.errors import UserError
from tests.texts import CAPTIONS, LONGEST, VOCABULARY, as_pipeline, change_settings, options_of, text_clip, text_t5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("texts")
    return {"clip": text_clip(root / "clip"), "t5": text_t5(root / "t5")}


def built(folders: dict[str, Path], name: str) -> TextEncoder:
    return build_encoder(options_of(name, folders.get(name, "")))


def close(one: Tensor, other: Tensor) -> None:
    """Equal within 1e-6 of the largest number: sums of float32 in another order."""
    torch.testing.assert_close(one, other, atol=1e-6 * other.abs().max().item(), rtol=0)


def ids_of(name: str, text: str) -> list[int]:
    """What a tokenizer of whole words does, by hand."""
    words = [VOCABULARY.index(word) if word in VOCABULARY else 3 for word in text.split()]
    marks = 2 if name == "clip" else 1
    return [1] * (marks - 1) + words[: LONGEST - marks] + [2]


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_features_are_the_last_hidden_states_of_the_real_tokens(folders: dict[str, Path], name: str) -> None:
    """Against transformers' own model, text by text and without padding."""
    import transformers

    kind = {"clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel}[name]
    model = kind.from_pretrained(folders[name]).eval()
    encoder = built(folders, name)
    found, counts = encoder.encode(CAPTIONS), encoder.count(CAPTIONS)
    assert counts == [len(row) for row in found] and max(counts) == LONGEST and encoder.width == found[0].shape[1]
    for text, features in zip(CAPTIONS, found):
        ids = torch.tensor([ids_of(name, text)])
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        assert features.dtype == torch.float32 and features.shape == (ids.shape[1], encoder.width)
        close(features, expected)
    assert (found[0][1] - found[0][2]).abs().max() > 0.1
    assert encoder.encode([]) == encoder.count([]) == []


@pytest.mark.parametrize("name", ["clip", "t5", "words"])
def test_features_do_not_depend_on_the_other_texts(folders: dict[str, Path], name: str) -> None:
    encoder = built(folders, name)
    together = encoder.encode(CAPTIONS)
    for order in (range(len(CAPTIONS)), reversed(range(len(CAPTIONS)))):
        for i in order:
            close(encoder.encode([CAPTIONS[i]])[0], together[i])
    pair = encoder.encode([CAPTIONS[3], CAPTIONS[1]])
    close(pair[0], together[3])


@pytest.mark.parametrize("name", ["clip", "t5", "words"])
def test_an_encoder_travels_without_its_weights(folders: dict[str, Path], name: str) -> None:
    encoder = built(folders, name)
    before, identity = encoder.encode(CAPTIONS), encoder.fingerprint
    assert encoder.to("cpu", torch.float32) is encoder and encoder.device == torch.device("cpu")
    data = pickle.dumps(encoder)
    assert len(data) < 4000
    again = pickle.loads(data)  # noqa: S301
    assert (again.name, again.width, again.max_tokens, again.fingerprint) == (name, encoder.width, LONGEST, identity)
    for one, other in zip(again.encode(CAPTIONS), before):
        assert torch.equal(one, other)


def test_a_dtype_is_that_of_the_computation(folders: dict[str, Path]) -> None:
    exact = built(folders, "t5").encode(CAPTIONS)
    rounded = built(folders, "t5").to("cpu", torch.bfloat16).encode(CAPTIONS)
    errors = [(one - other).abs().max().item() for one, other in zip(exact, rounded)]
    assert all(row.dtype == torch.float32 for row in rounded) and 1e-4 < max(errors) < 0.2


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_a_pipeline_and_a_whole_model_have_the_same_encoder(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Of several encoders in a pipeline, the one that fits is taken."""
    pipeline = as_pipeline(folders[name], tmp_path / "pipeline", "_2")
    as_pipeline(folders["t5" if name == "clip" else "clip"], pipeline)
    encoder = build_encoder(options_of(name, pipeline))
    assert encoder.fingerprint == built(folders, name).fingerprint
    torch.testing.assert_close(encoder.encode(CAPTIONS)[1], built(folders, name).encode(CAPTIONS)[1], atol=0, rtol=0)


def test_a_whole_clip_gives_its_text_part(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = text_clip(tmp_path / "text")
    text = {key: value for key, value in json.loads((small / "config.json").read_text()).items() if key != "dtype"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4}))
    model.save_pretrained(tmp_path / "whole")
    shutil.copy(small / "tokenizer.json", tmp_path / "whole")
    encoder = build_encoder(options_of("clip", tmp_path / "whole"))
    ids = torch.tensor([ids_of("clip", CAPTIONS[0])])
    with torch.no_grad():
        expected = model.eval().text_model(input_ids=ids).last_hidden_state[0]
    close(encoder.encode(CAPTIONS[:1])[0], expected)
    assert text_width(options_of("clip", tmp_path / "whole")) == 32


def test_a_vocabulary_and_merges_make_a_tokenizer_too(tmp_path: Path) -> None:
    """As SDXL's folder has them; transformers builds it then."""
    folder = text_clip(tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    words = {"a</w>": 5, "b": 6, "c</w>": 7, "bc</w>": 8, "<|startoftext|>": 1, "<|endoftext|>": 2}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\nb c</w>\n")
    encoder = build_encoder(options_of("clip", folder, max_tokens=4))
    assert encoder.count(["a", "A bc", "a a a a a"]) == [3, 4, 4]
    assert pickle.loads(pickle.dumps(encoder)).count(["a"]) == [3]  # noqa: S301


def test_words_are_normal_numbers_that_follow_from_the_word_alone() -> None:
    """Against Box and Muller's formula on blake2b's bits, written out anew."""
    encoder = build_encoder(options_of("words"))
    (found,) = encoder.encode(["Red"])
    bits = [
        hashlib.blake2b(b"red", digest_size=16, salt=struct.pack("<I", i)).digest() for i in range(WORDS_WIDTH // 2)
    ]
    pairs = (np.frombuffer(b"".join(bits), "<u8").reshape(-1, 2) // 2**11 + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(pairs[:, 0])), 2 * math.pi * pairs[:, 1]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(1, -1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert found.dtype == torch.float32 and encoder.width == found.shape[1] == WORDS_WIDTH == 64
    # Recorded: the same on every machine, in every release.
    np.testing.assert_allclose(found[0, :3].tolist(), RED, rtol=1e-6)


RED = [-1.0176420211791992, -0.6162410378456116, -0.11747635900974274]


def test_words_have_the_statistics_of_normal_numbers() -> None:
    """Mean, variance, fourth moment and correlation of 200 words, within five standard deviations."""
    vectors = torch.cat(
        build_encoder(options_of("words", max_tokens=200)).encode([" ".join(f"w{i}" for i in range(200))])
    )
    values = vectors.double().flatten()
    n = len(values)
    assert abs(values.mean()) < 5 / n**0.5 and abs(values.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(values.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    correlation = np.corrcoef(vectors.numpy())[np.triu_indices(200, 1)]
    assert abs(correlation.mean()) < 5 / (64 * len(correlation)) ** 0.5 and np.abs(correlation).max() < 0.7


def test_words_are_letters_and_digits_of_any_script_in_lower_case() -> None:
    encoder = build_encoder(options_of("words", max_tokens=5))
    (found,) = encoder.encode(["A red-ball, RED_ball."])
    assert found.shape == (5, 64) and torch.equal(found[1], found[3]) and torch.equal(found[2], found[4])
    assert encoder.count(["Été 42 мяч 球", "e\u0301te\u0301", "a b c d e f g"]) == [4, 1, 5]
    assert torch.equal(encoder.encode(["e\u0301te\u0301"])[0], encoder.encode(["ÉTÉ"])[0])
    for text in ("", " \n", "... !?_"):
        with pytest.raises(UserError, match="without a word"):
            encoder.count([text])


def test_a_fingerprint_is_of_all_that_features_follow_from_and_of_nothing_else(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def of(name: str, change: Any = None, **more: Any) -> str:
        folder = Path(shutil.copytree(folders["clip"], tmp_path / name))
        if change is not None:
            change(folder)
        return build_encoder(options_of("clip", folder, **more)).fingerprint

    def tokens(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"red"', '"rot"'))

    same = built(folders, "clip").fingerprint
    assert len(same) == 64 and same == fingerprint_of(options_of("clip", folders["clip"]))
    harmless = {"_name_or_path": "/elsewhere", "transformers_version": "9", "dtype": "float16", "architectures": None}
    assert of("other place") == same == of("harmless", lambda folder: change_settings(folder, **harmless))
    others = [
        of("tokens", tokens),
        of("settings", lambda folder: change_settings(folder, layer_norm_eps=1e-3)),
        of("length", max_tokens=11),
        build_encoder(options_of("clip", text_clip(tmp_path / "weights", seed=1))).fingerprint,
        built(folders, "t5").fingerprint,
        built(folders, "words").fingerprint,
        build_encoder(options_of("words", max_tokens=11)).fingerprint,
    ]
    assert len({same, *others}) == 8


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "KEPT_FROM", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 20)
    digest = digests.digest_of(file)
    assert digest == hashlib.sha256(b"x" * 20).hexdigest()
    digests._of_file.cache_clear()
    (kept,) = (tmp_path / "cache" / "megatron_videogpt" / "digests").iterdir()
    kept.write_text("f" * 64)
    assert digests.digest_of(file) == "f" * 64
    file.write_bytes(b"y" * 20)
    os.utime(file, ns=(1, 1))
    assert digests.digest_of(file) == hashlib.sha256(b"y" * 20).hexdigest()
