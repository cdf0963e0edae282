"""The model of a checkpoint folder: what is written is read bit by bit, values and shapes that cannot belong together
are refused in one line.
"""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_videogpt.convert.folder import INDEX, WEIGHTS, Folder
from megatron_videogpt.convert.released import read_model_config, tensor_source
from megatron_videogpt.convert.table import EMBED_TOKENS, parameters
from megatron_videogpt.convert.tensor_files import Entry, write_tensors
from megatron_videogpt.convert.untrusted import DTYPES

from ..release import CONFIG, MODEL, entries, refused, shard, sound_folder, tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder of one file."""
    return sound_folder(tmp_path / "model")


numbers = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda key: key != "__metadata__"
    ),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
    min_size=1,
    max_size=8,
)


@given(kinds=numbers, most=st.integers(1, 3000), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_written_tensors_are_what_safetensors_and_folder_read(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict, most: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("written")
    generator = torch.Generator().manual_seed(seed)
    values = {
        key: (torch.randn(shape, generator=generator) * 50).to(DTYPES[kind]) for key, (kind, shape) in kinds.items()
    }
    (path / "config.json").write_text("{}")
    seen: list[int] = []
    files = write_tensors(path, entries(values), most, seen.append)
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert sum(seen) == sum(value.nbytes for value in values.values()) and len(seen) == len(values)
    found: dict[str, torch.Tensor] = {}
    for file in shards:
        held = load_file(file)
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        places = json.loads(data[8 : 8 + length])
        # What maps a file needs each tensor at a multiple of its width.
        assert length % 8 == 0 and all(
            places[key]["data_offsets"][0] % value.element_size() == 0 for key, value in held.items()
        )
        assert not found.keys() & held.keys() and (
            len(held) == 1 or sum(value.nbytes for value in held.values()) <= most
        )
        found |= held
    opened = Folder(path)
    assert found.keys() == values.keys() == set(opened.keys())
    for key, value in values.items():
        for read in (found[key], opened.tensor(key)):
            assert read.dtype == value.dtype and torch.equal(read, value)
        assert (opened.shape(key), opened.dtype(key)) == (tuple(value.shape), value.dtype)
    with safe_open(shards[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    if len(shards) > 1:
        index = json.loads((path / INDEX).read_text())
        assert (
            index["metadata"]["total_size"] == sum(seen)
            and {name: path / file for name, file in index["weight_map"].items()}.keys() == values.keys()
        )
        assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "vocab_size": 12,
    }
    config = transformers.Phi3Config(**names, pad_token_id=0)
    torch.manual_seed(0)
    state = transformers.Phi3Model(config).state_dict()
    config.save_pretrained(tmp_path)
    assert len(write_tensors(tmp_path, entries(state), 3000)) > 3
    loaded = transformers.Phi3Model.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def full() -> torch.Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    values = entries({"a": torch.ones(4), "b": torch.ones(4)})
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path, [*values, Entry("c", (4,), torch.float32, full)], 16)
    assert not list(tmp_path.iterdir())
    write_tensors(tmp_path, values, 100)
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path, values, 100)
    assert load_file(tmp_path / WEIGHTS).keys() == {"a", "b"}


def test_a_folder_of_one_file_and_of_shards_give_the_model(folder: Path) -> None:
    expected = tensors()
    for step in range(2):
        model, channels = read_model_config(folder)
        assert (model, channels) == (MODEL, 4)
        source = tensor_source(folder, (5, 9, 7))
        for entry in parameters(MODEL):
            value = expected[entry.hf][[5, 9, 7]] if entry.hf == EMBED_TOKENS else expected[entry.hf]
            assert torch.equal(source(entry), value)
        if not step:
            shard(folder)


def test_hint_tokens_are_found_where_a_tokenizer_names_them(folder: Path) -> None:
    ids = {"<|diffusion|>": 5, "<img>": 6, "</img>": 7}
    forms = {
        "tokenizer.json": {
            "added_tokens": [{"id": number, "content": token} for token, number in ids.items()]
            + [{"id": 3, "content": "<s>"}, 4]
        },
        "added_tokens.json": {**ids, "<s>": 3},
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(number): {"content": token} for token, number in ids.items()}
        },
    }
    hints = lambda path: Folder(path).hint_ids()  # noqa: E731
    assert hints(folder) is None
    for part in ("", "tokenizer"):
        (folder / part).mkdir(exist_ok=True)
        for name, content in forms.items():
            path = folder / part / name
            path.write_text(json.dumps(content))
            assert hints(folder) == (5, 6, 7)
            path.write_text(json.dumps(content).replace("6", "12"))
            refused(folder, name, "<img> has id 12", "0 to 11", call=hints)
            if name != "tokenizer_config.json":  # ids are the keys there
                path.write_text(json.dumps(content).replace("6", "7"))
                refused(folder, "5, 7, 7", "three different", call=hints)
            path.write_text(json.dumps(content).replace("</img>", "<x>"))
            refused(folder, "not </img>", call=hints)
            path.unlink()
    fields = {"diffusion_token_id": 5, "img_start_token_id": 6, "img_end_token_id": 7}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    assert hints(folder) == (5, 6, 7)
    (folder / "added_tokens.json").write_text(json.dumps({**ids, "<img>": 8}))
    refused(folder, "<img> has id 8 in added_tokens.json and 6 in config.json", call=hints)
    (folder / "added_tokens.json").unlink()
    for value in (True, "6", 6.0, -1, 10**30, [6]):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **fields, "img_start_token_id": value}))
        refused(folder, "config.json: <img> has id", call=hints)


FACTORS = {"type": "su", "long_factor": [1.0, 2.0, 3.0, 4.0], "short_factor": [1.0] * 4}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        *[({"hidden_size": value}, "hidden_size is") for value in (-16, 0, 16.0, True, "16", [16], 10**400, 2**40)],
        ({"hidden_size": 18}, "multiple of 4"),
        ({"hidden_size": 32}, "x_embedder.proj.weight [16, 4, 2, 2], expected [32, 4, 2, 2]"),
        ({"num_key_value_heads": 2}, "qkv_proj.weight [32, 16], expected [48, 16]"),
        ({"intermediate_size": 25}, "down_proj.weight [16, 24], expected [16, 25]"),
        ({"num_hidden_layers": 3}, "tensors for 2 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"rms_norm_eps": "1"}, "rms_norm_eps is '1'"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"hidden_act": "gelu"}, "only silu"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
        ({"patch_size": 4}, "patch_size is 4 in config.json, 2 in its tensors"),
        ({"in_channels": 16}, "in_channels is 16 in config.json, 4 in its tensors"),
        ({"pos_embed_max_size": 5}, "pos_embed_max_size is 5 in config.json, 4 in its tensors"),
        ({"rope_scaling": 3}, "rope_scaling type 3"),
        ({"rope_scaling": {"type": "yarn"}}, "type 'yarn' is not supported"),
        ({"rope_scaling": {**FACTORS, "long_factor": [1.0] * 3}}, "long_factor has 3 entries; expected 4"),
        ({"rope_scaling": {**FACTORS, "long_factor": [1.0, 0, 1, 1]}}, "long_factor is 0"),
        ({"rope_scaling": {"type": "su", "long_factor": [1.0] * 4}}, "short_factor has no list"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
    ],
)
def test_values_that_cannot_belong_to_the_tensors(folder: Path, changes: dict[str, Any], part: str) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, part)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_scaling": FACTORS},
        {"rope_parameters": {**FACTORS, "type": None, "rope_type": "longrope", "rope_theta": 5e5}},
    ],
)
def test_long_rope_in_the_forms_of_two_transformers(folder: Path, scaling: dict[str, Any]) -> None:
    scaling = {
        key: {name: value for name, value in fields.items() if value is not None} for key, fields in scaling.items()
    }
    (folder / "config.json").write_text(json.dumps({**CONFIG, **scaling, "original_max_position_embeddings": 1024}))
    model, _ = read_model_config(folder)
    assert model.rope_scaling == {**FACTORS, "type": "longrope"} and model.rope_theta == (
        5e5 if "rope_parameters" in scaling else 1e4
    )
    assert (model.max_position_embeddings, model.original_max_position_embeddings) == (4096, 1024)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"a": 1',
        '{"hidden_size": Infinity}',
        '{"a": 1e999}',
        '{"a":' * 100000,
        "\ufeff{}",
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_config_that_is_not_a_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_config_of_megabytes_is_not_parsed(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": "' + "x" * 2**23 + '"}')
    refused(folder, "config.json", "more than 4194304 bytes")


@pytest.mark.parametrize(
    ("key", "shape", "part"),
    [
        ("x_embedder.proj.weight", (16, 4, 2), "expected [hidden size, channels, patch, patch]"),
        ("pos_embed", (1, 15, 16), "a square table"),
        ("pos_embed", (1, 16, 8), "expected width 16"),
        (EMBED_TOKENS, (12, 8), "expected [vocabulary, 16]"),
        ("llm.layers.1.mlp.gate_up_proj.weight", (24, 16), "expected [48, 16]"),
    ],
)
def test_tensors_of_another_shape(folder: Path, key: str, shape: tuple[int, ...], part: str) -> None:
    save_file({**tensors(), key: torch.zeros(shape)}, folder / WEIGHTS)
    refused(folder, key, part)


def test_weights_are_floating_point_and_rows_exist(folder: Path) -> None:
    save_file({**tensors(), "llm.norm.weight": torch.ones(16, dtype=torch.int64)}, folder / WEIGHTS)
    entry = {item.hf: item for item in parameters(MODEL)}
    refused(
        folder,
        "llm.norm.weight",
        "floating-point",
        call=lambda path: tensor_source(path, (1, 2, 3))(entry["llm.norm.weight"]),
    )
    refused(folder, "12 rows", "12, 2, 3", call=lambda path: tensor_source(path, (12, 2, 3))(entry[EMBED_TOKENS]))
