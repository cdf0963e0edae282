"""An exported folder of the factorised network of frame as prompt where this project cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_videogpt.config.load import load_config
from tests.frame_prompt_folders import hub_folder, state_of, tool

from .vae import small_kl

pytest.importorskip("transformers", reason="exported folders need transformers (the extra hub)")
pytest.importorskip("diffusers", reason="exported folders need diffusers (the extra hub)")

SCRIPT = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.modules["megatron_videogpt"] = sys.modules["megatron"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
sys.path.insert(0, str(folder))
# The same by the file's own keys, and with nothing of transformers.
from configuration_frameprompt import FramePromptConfig
from modeling_frameprompt import FramePromptModel
import json
plain = FramePromptModel(FramePromptConfig(**json.loads((folder / "config.json").read_text()))).eval()
plain.load_published(load_file(folder / "model.safetensors"))
draws = torch.Generator().manual_seed(3)
latents, times = torch.randn(1, 5, 16, 4, 4, generator=draws), torch.tensor([[0, 0, 0, 300, 300]])
with torch.no_grad():
    ours, theirs = (network(latents, times, 3, start=5) for network in (model.eval(), plain))
assert torch.equal(ours.noise, theirs.noise) and ours.noise.std() > 0.01
from pipeline_frameprompt import FramePromptPipeline
pipeline = FramePromptPipeline.from_pretrained(folder)
video = torch.rand(5, 32, 32, 3, generator=draws)
def made(chunks=1, cache=True, output_type="latent", **more):
    how = dict(num_inference_steps=3, prompt_noise=0, generator=torch.Generator().manual_seed(5))
    return pipeline(video, chunks, given=3, cache=cache, output_type=output_type, **how | more)[0]
cached, whole = made(), made(cache=False)
assert cached.shape == (2, 16, 4, 4) and (cached - whole).abs().max() / whole.abs().max() < 1e-4
# Far past the end of the window.
assert made(5).shape == made(5, cache=False, solver="ddim").shape == (10, 16, 4, 4)
frames = made(output_type="np", prompt_noise=50)
assert frames.shape == (2, 32, 32, 3) and frames.dtype == "uint8"
for wrong in (dict(given=9), dict(window=8), dict(guidance_scale=2.0), dict(solver="euler")):
    try:
        made(**wrong) if "given" not in wrong else pipeline(video, **wrong)
    except ValueError as error:
        assert "\\n" not in str(error)
        continue
    raise SystemExit(wrong)
print("fine")
"""


def test_a_folder_runs_without_this_project(tmp_path: Path) -> None:
    """The network by transformers and by itself, and videos with a cache and without, in an empty directory."""
    convert = tool
    hub_folder(tmp_path / "given", vae=True)
    assert convert("from-hf", tmp_path / "given", "--output", tmp_path / "run") == 0
    assert convert("to-hf", tmp_path / "run", "--output", tmp_path / "out", "--license", "mit") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "FramePromptPipeline.from_pretrained(folder)" in card
    (tmp_path / "empty").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out")],
        cwd=tmp_path / "empty",
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout.strip() == "fine", result.stdout + result.stderr[-3000:]


def test_the_published_kind_of_vae_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image autoencoder of 4 channels, which a published file does not hold; one of other channels is refused."""
    convert, vae = tool, small_kl(tmp_path / "kl")
    torch.save(state_of(), tmp_path / "given.pt")
    told = ("from-hf", tmp_path / "given.pt", "--published", "num_heads=2", "chunk=2", "--output")
    assert convert(*told, tmp_path / "run", "--vae", vae) == 0
    codec = load_config(tmp_path / "run" / "config.toml").codec
    assert codec.name == "autoencoder_kl" and Path(codec.path).is_relative_to((tmp_path / "run").resolve())
    assert convert("to-hf", tmp_path / "run", "--output", tmp_path / "out") == 0
    for path in vae.iterdir():
        assert (tmp_path / "out" / "vae" / path.name).read_bytes() == path.read_bytes()
    assert convert("to-hf", tmp_path / "run", "--output", tmp_path / "back.pt", "--vae", vae) == 2
    assert "a published file of frame_prompt has none in it" in capsys.readouterr().err
    assert convert(*told, tmp_path / "other", "--codec", "tiny") == 2
    assert "a model of 4 latent channels, but its codec tiny has 16" in capsys.readouterr().err
    # Without any, the run says so, and so does its folder.
    assert convert(*told, tmp_path / "other") == 0
    assert convert("to-hf", tmp_path / "other", "--output", tmp_path / "none") == 0
    assert capsys.readouterr().out.count("no vae: ") == 2 and not (tmp_path / "none" / "vae").exists()
