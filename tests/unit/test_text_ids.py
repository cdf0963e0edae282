"""Texts as ids: start, padding and cut against recorded ones, exact on every way to a sample, and a line for each
mistake.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.condition.build import build_encoder
from megatron_videogpt.condition.captions import text_of, words_of
from megatron_videogpt.condition.folder import fingerprint_of, text_width
from megatron_videogpt.condition.ids import features_of, ids_of
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.data.shards.latents import STORED
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.next_block.vocabulary import vocabulary_of
from tests.texts import PIECED, PIECES, options_of, text_ids

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "nbp" / "ucf101_text.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_ids(tmp_path_factory.mktemp("ids"))


def conditioning(folder: Path, **more: Any) -> Conditioning:
    options = options_of("ids", folder, **more)
    return Conditioning(options, build_encoder(options))


def said(label: str = "", caption: str = "") -> Sample:
    return Sample(1, "clip.mp4", torch.zeros(1, 1, 1, 1), None, (1,), label=label, caption=caption)


def test_texts_of_class_folders_have_the_recorded_ids(folder: Path) -> None:
    """Of a tokenizer that has the pieces of six of them under the published ids."""
    recorded, made = json.loads(RECORDED.read_text())["classes"], conditioning(folder, text_from="label")
    for name in PIECED:
        values: Any = made.applied(said(name, "unused")).condition
        assert values.dtype == np.int64 and values.tolist() == recorded[name]["ids"], name
        # So a caption, and so a text that is given when sampling.
        assert made.values("", recorded[name]["text"]).tolist() == values.tolist()  # type: ignore[union-attr]
    assert text_width(made.options) == 32_000


def test_which_text_is_taken() -> None:
    assert words_of("sport/TaiChi") == "sport tai chi" and words_of("bounce/left") == "bounce left"
    labels = ConditionConfig("text", text_from="label")
    assert text_of(labels, "YoYo", "a toy") == "yo yo" and text_of(labels, "", "a toy") == "a toy"
    assert text_of(ConditionConfig("text"), "YoYo", "a toy") == "a toy"


def test_long_texts_are_cut_and_short_ones_padded(folder: Path) -> None:
    encoder = build_encoder(options_of("ids", folder, tokens=4))
    texts = ["boxing", "boxing punching bag", "never heard"]
    assert encoder.count(texts) == [4, 4, 4] and encoder.max_tokens == 4
    found = [ids_of(features.numpy()).tolist() for features in encoder.encode(texts)]
    assert found == [[1, 3800, 292, 2], [1, 3800, 292, 282], [1, 0, 0, 2]]
    again = pickle.loads(pickle.dumps(encoder)).encode(texts)  # noqa: S301
    assert all(torch.equal(one, other) for one, other in zip(again, encoder.encode(texts)))


@pytest.mark.parametrize("stored", STORED)
def test_ids_are_exact_as_they_are_stored(stored: str) -> None:
    ids = [0, 1, 2, 255, 256, 257, 2049, 31_999, 65_535, 65_536, 151_643, 2**24 - 1]
    assert ids_of(features_of(ids).to(STORED[stored]).float().numpy()).tolist() == ids


def test_what_is_wrong_with_a_tokenizer_is_one_line(folder: Path, tmp_path: Path) -> None:
    none, other = tmp_path / "none", text_ids(tmp_path / "other", {"<unk>": 0, "<s>": 1})
    none.mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:-9])
    far = text_ids(tmp_path / "far", {**PIECES, "▁far": 2**24})
    for path, reason in (
        ("", "condition.encoder_path is empty"),
        (none, "no tokenizer.json in it"),
        (tmp_path / "torn", "tokenizer.json is no tokenizer"),
        (other, "has no token </s>"),
        (far, "has the id 16777216; at most 16777215"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            build_encoder(options_of("ids", path))
        assert "\n" not in str(caught.value)
    # More or fewer ids than the file has are the model's affair, until a text has one that it does not know.
    fewer = conditioning(folder, width=10_000)
    assert fewer.values("", "apply")[:2].tolist() == [1, 3394]  # type: ignore[index]
    for label, reason in (("apply eye", "the id 10977, outside of the 10000 ids of condition.width"), (" ", "caption")):
        with pytest.raises(BadVideo, match=reason) as bad:
            fewer.applied(said(caption=label))
        assert bad.value.kind == "condition"
    stored = Conditioning(options_of("ids", "", width=300), None, "made in advance")
    with pytest.raises(BadVideo, match="the id 3394, outside of the 300 ids"):
        stored.applied(Sample(1, "", torch.zeros(1), None, (1,), condition=features_of([1, 3394])))


def test_the_fingerprint_is_of_the_file_and_of_what_is_made_of_it(folder: Path, tmp_path: Path) -> None:
    copy = text_ids(tmp_path / "copy")
    first = fingerprint_of(options_of("ids", folder))
    assert fingerprint_of(options_of("ids", copy, max_tokens=5)) == first
    text_ids(copy, {**PIECES, "▁more": 31_998})
    others = [
        options_of("ids", copy),
        options_of("ids", folder, tokens=7),
        options_of("ids", folder, text_from="label"),
    ]
    assert len({first, *map(fingerprint_of, others)}) == 4


def problems(**sections: dict[str, Any]) -> list[str]:
    """What `check` says of conditions and of the layout of blocks."""
    lines = find_problems(config_from_dict({"condition": {"kind": "text"}, "codec": {"name": "fsq"}, **sections}), None)
    return [line for line in lines if line.startswith(("condition.", "objective.layout"))]


def test_ids_are_for_objectives_that_take_them(folder: Path) -> None:
    blocks = {"name": "next_block_prediction", "layout": "hybrid"}
    ids = {"kind": "text", "encoder": "ids", "encoder_path": str(folder)}
    assert problems(objective=blocks, condition=ids) == []
    assert problems(objective=blocks, condition={"kind": "text", "encoder": "ids", "width": 32_000}) == []
    for sections, begin, reason in (
        ({"condition": ids}, 'condition.encoder = "ids"', "not be ids with objective.name = next_clip_diffusion"),
        ({"objective": blocks}, 'condition.encoder = "clip"', "be ids with objective.name = next_block_prediction"),
        ({"objective": {**blocks, "layout": "unconditional"}, "condition": ids}, "objective.layout", "hybrid or given"),
        ({"objective": blocks, "condition": {**ids, "tokens": 1}}, "condition.tokens = 1", "at least 2"),
        ({"objective": blocks, "condition": {**ids, "encoder_path": ""}}, "condition.encoder_path", "a tokenizer.json"),
        ({"objective": blocks, "condition": {**ids, "encoder_path": str(folder.parent)}}, "condition.enc", "no tokeni"),
    ):
        (line,) = problems(**sections)
        assert line.startswith(begin) and reason in line and "\n" not in line, line


def test_the_vocabulary_has_the_ids_of_texts(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_text('{"levels": [5, 4, 3]}')
    objective = {"name": "next_block_prediction", "layout": "hybrid", "block": 16}
    given = {"objective": objective, "codec": {"name": "fsq", "path": str(tmp_path)}}
    for more in ({"encoder_path": str(folder)}, {"width": 32_000}):
        condition = {"kind": "text", "encoder": "ids", **more}
        vocabulary = vocabulary_of(config_from_dict({**given, "condition": condition}))
        assert (vocabulary.condition_offset, vocabulary.code_offset, vocabulary.size) == (16, 32_016, 32_076)
