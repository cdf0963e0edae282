"""`convert verify` on a small release made here: everything passes, and each thing that could be wrong fails
with a line that says so.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_videogpt.__main__ import main
from megatron_videogpt.convert.folder import INDEX, WEIGHTS
from megatron_videogpt.data.decode import probe
from tests.parallel.launch import cli

from ..release import CONFIG, MODEL, shard, sound_folder, tensors
from .vae import small_kl

ROOT = Path(__file__).resolve().parents[2]
FACTORS = {"long_factor": [1.0, 2.0, 3.5, 8.0], "short_factor": [1.0, 1.0, 1.5, 2.0]}
STAGE = f"""
[model]
num_layers = {MODEL.num_layers}
hidden_size = {MODEL.hidden_size}
ffn_hidden_size = {MODEL.ffn_hidden_size}
num_attention_heads = {MODEL.num_attention_heads}
num_query_groups = {MODEL.num_query_groups}
position_table_size = 4
max_position_embeddings = 8192
rope_scaling = {{type = "longrope", long_factor = {FACTORS["long_factor"]}, short_factor = {FACTORS["short_factor"]}}}
[sample]
history = 3
clips = [2, 1]
window = 5
steps = 2
guidance = 1.5
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """In several files, with a tokenizer; two stages beside it."""
    folder = sound_folder(tmp_path / "release")
    fields = {
        "rope_scaling": {"type": "su", **FACTORS},
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    tokens = [
        {"id": number, "content": token}
        for number, token in ((9, "<|diffusion|>"), (5, "<img>"), (7, "</img>"), (2, "</s>"))
    ]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    shard(folder, 8000)
    (tmp_path / "stages").mkdir()
    for number in (1, 2):
        (tmp_path / "stages" / f"stage{number}.toml").write_text(STAGE)
    return folder


def check(release: Path, *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit status, and check -> (PASS, FAIL or SKIP, what is said) from the report."""
    output = release.parent / "out"
    stages = release.parent / "stages"
    done = cli("convert", "verify", *map(str, (release, "--stages", stages, "--output", output)), *options)
    assert "Traceback" not in done.stderr, done.stderr
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in (output / "report.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    results = {name.strip(): (status.strip(), said.strip().replace("\\|", "|")) for name, status, said in rows[1:]}
    for name, (status, said) in results.items():
        assert f"{status}  {name}: {said.split('<br>')[0]}" in done.stdout
    return done.returncode, results


@pytest.mark.long
def test_a_sound_release_passes_and_is_continued(release: Path) -> None:
    pytest.importorskip("diffusers")
    small_kl(release / "vae")
    index = json.loads((release / INDEX).read_text())
    save_file({"llm.rotary": torch.arange(3)}, release / "more.safetensors")
    index["weight_map"]["llm.rotary"] = "more.safetensors"
    (release / INDEX).write_text(json.dumps(index))
    code, results = check(release)
    assert code == 0 and {status for status, _ in results.values()} == {"PASS"}, results
    count = sum(value.numel() for key, value in tensors().items() if key != "pos_embed") + 3
    assert f"{count:,} parameters" in results["tensors"][1] and "llm.rotary" in results["tensors"][1]
    assert "<|diffusion|> = 9, <img> = 5, </img> = 7" in results["hint tokens"][1]
    assert "history 3, clips [2, 1], window 5, 2 steps, guidance 1.5" in results["stages"][1]
    assert f"{len(tensors()) + 1} tensors bit-equal" in results["round trip"][1]
    made = sorted((release.parent / "out" / "predictions").iterdir())
    assert [path.suffix for path in made].count(".mp4") == [path.suffix for path in made].count(".png") == 3
    assert all(probe(path).frames == 6 for path in made if path.suffix == ".mp4")
    assert not [path for path in (release.parent / "out").iterdir() if path.name not in ("predictions", "report.md")]


def flipped_shape(release: Path) -> None:
    for path in release.glob("*.safetensors"):
        held = load_file(path)
        key = "llm.layers.1.self_attn.o_proj.weight"
        if key in held:
            save_file({**held, key: held[key].reshape(32, 8).contiguous()}, path)


def missing_token(release: Path) -> None:
    path = release / "tokenizer.json"
    path.write_text(path.read_text().replace("<|diffusion|>", "<|end|>"))


def no_tokenizer(release: Path) -> None:
    (release / "tokenizer.json").unlink()


def zero_row(release: Path) -> None:
    for path in release.glob("*.safetensors"):
        held = load_file(path)
        if "llm.embed_tokens.weight" in held:
            held["llm.embed_tokens.weight"][7] = 0
            save_file(held, path)


def other_factor(release: Path) -> None:
    path = release.parent / "stages" / "stage2.toml"
    path.write_text(path.read_text().replace("3.5", "3.6"))


def other_positions(release: Path) -> None:
    path = release.parent / "stages" / "stage2.toml"
    path.write_text(path.read_text().replace("8192", "16384"))


def only_pickles(release: Path) -> None:
    for path in [*release.glob("*.safetensors"), release / INDEX]:
        path.unlink()
    (release / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "name", "part"),
    [
        (flipped_shape, "tensors", "llm.layers.1.self_attn.o_proj.weight has shape [32, 8] and not [16, 16]"),
        (missing_token, "hint tokens", "but not <|diffusion|>"),
        (no_tokenizer, "hint tokens", "no ids of <|diffusion|>, <img>, </img>"),
        (zero_row, "hint tokens", "are zero or not finite"),
        (other_factor, "stages", "stage2.toml: rope_scaling.long_factor[2] is 3.5, not 3.6"),
        (other_positions, "stages", "stage2.toml: max_position_embeddings is 8192, not 16384"),
        (only_pickles, "folder", "never opened"),
    ],
)
def test_what_is_wrong_fails(
    release: Path, damage: Any, name: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(release)
    output = release.parent / "out"
    options = [
        "--stages",
        str(release.parent / "stages"),
        "--output",
        str(output),
        "--skip",
        "round trip",
        "predictions",
    ]
    assert main(["convert", "verify", str(release), *options]) == 1
    printed = capsys.readouterr().out.splitlines()
    failed = [line for line in printed if line.startswith("FAIL")]
    assert len(failed) == 1 and failed[0].startswith(f"FAIL  {name}: ") and part in failed[0], printed


def test_a_tensor_that_comes_back_different_fails(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from megatron_videogpt.evaluate.release import checks

    def lossy(direction: str, source: Path, option: str, target: Path, *_: str) -> None:
        target.mkdir()
        for path in source.iterdir():
            if path.is_file():
                (target / path.name).write_bytes(path.read_bytes())
        if direction == "to-hf":
            held = load_file(path := next(target.glob("*.safetensors")))
            key = next(key for key, value in held.items() if value.numel() > 1)
            held[key].view(-1).view(torch.int32)[-1] ^= 1
            save_file(held, path)

    monkeypatch.setattr(checks, "convert", lossy)
    work = release.parent / "work"
    work.mkdir()
    with pytest.raises(ValueError, match="1 tensors came back different: "):
        checks.check_round_trip(checks.Task(argparse.Namespace(folder=release, vae=None), work))


def test_memory_of_a_conversion_counts_children_and_not_mapped_files(tmp_path: Path) -> None:
    from tools import benchmark_conversion

    mapped, million = tmp_path / "mapped", 10**6
    mapped.write_bytes(bytes(300 * million))
    child = f"held = bytearray(b'x') * {80 * million}; import time; time.sleep(1.5)"
    parent = (
        f"import mmap, subprocess, sys; held = bytearray(b'x') * {60 * million}; file = open({str(mapped)!r}); "
        "seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(seen[::4096]); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    peak, seconds = benchmark_conversion.measured([sys.executable, "-c", parent])
    assert 140 * million < peak.own < 200 * million and peak.own + 250 * million < peak.with_files < 550 * million
    assert len(peak.highest) == 2 and sum(peak.highest.values()) > peak.own and seconds > 1.5
    with pytest.raises(ValueError, match="exit code 3"):
        benchmark_conversion.measured([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_command_line(release: Path) -> None:
    for options in (
        ["nowhere"],
        [str(release), "--vae", str(release), "--skip", "round trip"],
        [str(release), "--steps", "0"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["convert", "verify", *options])
        assert caught.value.code == 2
    assert WEIGHTS not in [path.name for path in release.iterdir()]
