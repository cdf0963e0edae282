"""Folders of others: a stock Phi-3, VAEs, tokenizers, training configurations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_videogpt.checkpoint.folders import newest_folder
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.convert import ingest, settings
from megatron_videogpt.convert.folder import Folder
from tests.conversion import TINY, folder_of, tensors_of, to_folder, to_run
from tests.data.vae import small_kl

from .test_convert import one_line

pytestmark = pytest.mark.usefixtures("processes")


def stock(path: Path, tokens: dict[str, int] | None, rows: int = 32064) -> dict[str, torch.Tensor]:
    """A stock Phi-3 folder: the backbone alone, under its own names."""
    tensors = {key: value for key, value in tensors_of(TINY, "bf16").items() if key.startswith("llm.")}
    tensors = {"model." + key.removeprefix("llm."): value for key, value in tensors.items()} | {
        "lm_head.weight": torch.randn(rows, 32).bfloat16()
    }
    tensors["model.embed_tokens.weight"] = torch.randn(rows, 32).bfloat16()
    folder_of(path, TINY, tensors, architectures=["Phi3ForCausalLM"], vocab_size=rows)
    (path / "added_tokens.json").unlink()
    if tokens is not None:
        (path / "tokenizer.json").write_text(
            json.dumps(
                {
                    "model": {"vocab": {"a": 0, "b": 1}},
                    "added_tokens": [{"content": k, "id": n} for k, n in tokens.items()],
                }
            )
        )
    return tensors


def test_the_backbone_of_a_stock_phi_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "STOCK_TABLE", 8)
    tensors = stock(tmp_path / "phi", {"<|endoftext|>": 32000, "<|user|>": 32010})
    source = to_run(tmp_path / "phi", tmp_path / "run")
    assert source.hint_ids == (32011, 32012, 32013) and source.channels == 4
    back = to_folder(tmp_path / "run", tmp_path / "back")
    for key, value in tensors.items():
        ours = back[key.replace("model.", "llm.")]
        if key == "model.embed_tokens.weight":
            # The rows that were free start afresh, spread as a fresh model's are; all others are as they were.
            fresh = ours[32011:32014].float()
            assert 0.01 < float(fresh.std()) < 0.03
            value = torch.cat([value[:32011], ours[32011:32014], value[32014:]])
        assert ours.dtype == value.dtype and torch.equal(ours, value)
    assert (
        not back["x_embedder.proj.weight"].any()
        and back["input_x_embedder.proj.weight"].any()
        and back["time_token.mlp.2.weight"].any()
    )
    assert json.loads((tmp_path / "back" / "config.json").read_text())["diffusion_token_id"] == 32011
    # It is one in the released layout now.
    to_run(tmp_path / "back", tmp_path / "again")


@pytest.mark.parametrize(("tokens", "rows"), [(None, 32064), ({"x": 32012}, 32064), ({"x": 3}, 32012)])
def test_stock_ids_that_are_not_known_to_be_free(tmp_path: Path, tokens: dict[str, int] | None, rows: int) -> None:
    stock(tmp_path / "phi", tokens, rows)
    with pytest.raises(ValueError) as caught:
        ingest.open_source(Folder(tmp_path / "phi"), settings.codec_of(None), None, None, False)
    one_line(caught, "--hint-ids", "not known to be free")
    assert ingest.open_source(Folder(tmp_path / "phi"), settings.codec_of(None), (4, 5, 6), None, False).hint_ids == (
        4,
        5,
        6,
    )
    with pytest.raises(ValueError, match="three different rows"):
        ingest.open_source(Folder(tmp_path / "phi"), settings.codec_of(None), (4, 5, rows), None, False)


def test_a_training_configuration_from_outside(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", TINY, tensors_of(TINY, "fp32"))
    assert settings.folder_config(folder).sample == Config().sample
    places = (
        '[data]\npath = "/etc"\ncache = "/etc"\nmixture = {"/etc" = 1.0}\n[train]\ninit_from = "/etc"\noutput = '
        '"/etc"\n'
    )
    (folder / "videogpt_config.toml").write_text(f"{places}[sample]\nsteps = 7\n[model]\nnum_layers = 99\n")
    config = settings.folder_config(folder)
    assert (config.data, config.train) == (Config().data, Config().train)
    assert config.sample.steps == 7 and config.model.num_layers == 2 and config.model.num_query_groups == 0
    (folder / "videogpt_config.toml").write_text('base = "/etc/passwd"\n')
    with pytest.raises(ValueError):
        settings.folder_config(folder)


def test_a_vae_takes_the_way_there_and_back(tmp_path: Path) -> None:
    from megatron_videogpt.checkpoint.folders import read_state

    vae = tmp_path / "vae"
    small_kl(vae)
    codec = settings.codec_of(vae)
    folder = folder_of(tmp_path / "folder", TINY, tensors_of(TINY, "fp32"))
    with pytest.raises(ValueError, match="holds autoencoder_kl"):
        settings.codec_of(vae, "tiny")
    to_run(folder, tmp_path / "run", codec=codec, vae=vae)
    config = load_config(tmp_path / "run" / "config.toml")
    assert Path(config.codec.path) == tmp_path / "run" / "released" / "files" / "vae"
    assert (
        build_codec(config.codec).fingerprint
        == build_codec(codec).fingerprint
        == read_state(newest_folder(tmp_path / "run") or vae)["codec"]
    )
    to_folder(tmp_path / "run", tmp_path / "back")
    for path in vae.iterdir():
        assert (tmp_path / "back" / "vae" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "back" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    # Shards travel with their index.
    state = load_file(vae / "diffusion_pytorch_model.safetensors")
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "a.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "a.safetensors")}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    to_run(folder, tmp_path / "sharded", codec=codec, vae=vae)
    copied = load_config(tmp_path / "sharded" / "config.toml").codec
    assert copied.path != codec.path and build_codec(copied).fingerprint == build_codec(codec).fingerprint
    # A folder whose model has other channels than its VAE.
    other = folder_of(tmp_path / "other", replace(TINY, channels=3), tensors_of(replace(TINY, channels=3), "fp32"))
    with pytest.raises(ValueError, match="3 latent channels, but its codec autoencoder_kl has 4"):
        to_run(other, tmp_path / "none", codec=codec, vae=vae)


def test_a_tiny_codec_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "TinyAutoencoder"}')
    save_file({"encoder.0.weight": torch.zeros(3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="another tiny codec"):
        settings.codec_of(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(ValueError, match="expected one of AutoencoderKL"):
        settings.codec_of(tmp_path)


def test_what_a_release_made_that_ignored_its_vae_s_scaling(tmp_path: Path) -> None:
    """A folder's own code shows which release wrote it; one without code is what others made.  A run's checkpoint has
    the fingerprint.
    """
    folder, vae = folder_of(tmp_path / "folder", TINY, tensors_of(TINY, "fp32")), small_kl(tmp_path / "vae")
    more = {"latents_mean": [0.0] * 4, "latents_std": [2.0] * 4, "shift_factor": None}
    (vae / "config.json").write_text(json.dumps(json.loads((vae / "config.json").read_text()) | more))
    codec = settings.codec_of(vae)

    def opened() -> ingest.Source:
        return ingest.open_source(Folder(folder), codec, None, None, False)

    assert opened().channels == 4
    to_run(folder, tmp_path / "run", codec=codec, vae=vae)
    to_folder(tmp_path / "run", tmp_path / "back")
    state = (newest_folder(tmp_path / "run") or vae) / "state.json"
    text = state.read_text()
    fields = {key: value for key, value in json.loads((vae / "config.json").read_text()).items() if key[0] != "_"}
    weights = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    before = hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + weights).hexdigest()
    state.write_text(text.replace(json.loads(text)["codec"], before))
    (state.parent / "files.json").unlink()
    with pytest.raises(ValueError, match="on other latents.*earlier releases ignored") as caught:
        to_folder(tmp_path / "run", tmp_path / "again")
    assert "\n" not in str(caught.value)
    (folder / "frames_videogpt.py").touch()
    with pytest.raises(ValueError, match="ignored latents_mean and latents_std") as caught:
        opened()
    assert "\n" not in str(caught.value)
    (folder / "vae_videogpt.py").touch()
    assert opened().channels == 4
