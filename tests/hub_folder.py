"""Exported folders with random weights, and the script that a user's environment runs on one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.convert.standalone import hub_config, write_code, write_json, write_vae
from tests import dense

HINTS = (3, 1, 4)
"""Not in the order of the table, so that mixing them up shows."""


def sizes(tiny: dense.Tiny) -> ModelConfig:
    """The same sizes as a run's configuration."""
    return ModelConfig(
        num_layers=tiny.layers,
        hidden_size=tiny.width,
        ffn_hidden_size=tiny.ffn,
        num_attention_heads=tiny.heads,
        num_query_groups=tiny.groups,
        position_table_size=tiny.table,
        rope_scaling={
            "type": "longrope",
            "long_factor": list(tiny.long_factor),
            "short_factor": [1.0] * len(tiny.long_factor),
        }
        if tiny.long_factor
        else {},
        max_position_embeddings=tiny.longest,
        original_max_position_embeddings=tiny.original,
        norm=tiny.norm,
        activation=tiny.activation,
        biases=tiny.biases,
        positions=tiny.positions,
        dropout=tiny.dropout,
    )


def released(weights: dict[str, Tensor], tiny: dense.Tiny) -> dict[str, Tensor]:
    """Dense weights as a released state dict: a text table with the hint rows in their places, and
    the position table.
    """
    crop = dense.table_crop(tiny, tiny.table, tiny.table)
    text = torch.full((6, tiny.width), 9.0)
    text[list(HINTS)] = weights["llm.embed_tokens.weight"].detach()
    return {key: value.detach() for key, value in weights.items()} | {
        "llm.embed_tokens.weight": text,
        "pos_embed": crop[None],
    }


def settings(tiny: dense.Tiny, **fields: object) -> dict:
    """`config.json` of such a folder."""
    return hub_config(sizes(tiny), tiny.channels, HINTS, 6, None, longest_side=64) | fields


def export(
    folder: Path, tiny: dense.Tiny, weights: dict[str, Tensor], codec: CodecConfig | None = None, **fields: object
) -> Path:
    """A whole folder: weights, settings, VAE and code."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in released(weights, tiny).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_json(folder / "config.json", settings(tiny, **fields))
    codec = codec or CodecConfig()
    write_vae(folder, codec)
    write_code(folder, codec.name == "tiny")
    return folder


START = """
import importlib, sys
from pathlib import Path
folder, given, work = map(Path, sys.argv[1:4])
for name in ("megatron", "megatron_videogpt", *sys.argv[4:]):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(name + " can be imported here")
import numpy as np, torch
from safetensors.torch import load_file, save_file
given = load_file(given)
sys.path.insert(0, str(folder))
arguments = dict(video=given["video"].numpy(), clips=[2, 1], num_inference_steps=3, guidance_scale=3.0)
arguments["output_type"] = "latent"
def run(pipeline, **more):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**{**arguments, **more}, generator=torch.Generator().manual_seed(5)).frames[0]
def same(out, limit=5e-4):
    assert float((out - given["latents"]).abs().max() / given["latents"].abs().max()) < limit
"""
"""Arguments: the folder, the file of what it must give, a folder to write into, and modules that must not be there."""

SCRIPT = (
    START
    + """
from transformers import AutoConfig, AutoModel
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == "VideoGPTConfig"
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
def close(model, key="pred", limit=2e-5):
    with torch.no_grad():
        out = model(given["noisy"], given["t"], given["clean"], given["clips"].tolist()).sample
    error = float((out - given[key]).abs().max() / given[key].abs().max())
    assert error < limit, error
close(model)
model.save_pretrained(work / "again")
again = AutoModel.from_pretrained(work / "again", trust_remote_code=True)
close(again)
assert again.config.to_diff_dict() | {"_name_or_path": 0} == model.config.to_diff_dict() | {"_name_or_path": 0}
new = type(model.config)(diffusion_token_id=0, img_start_token_id=1, img_end_token_id=2, patch_size=4)
facts = new.to_dict()
assert (facts["hidden_size"], facts["patch_size"], new.longest_side, new.rope_scaling) == (3072, 4, 320, None)
assert type(new).from_dict(new.to_dict()).to_dict() == new.to_dict()
before = load_file(folder / "model.safetensors")
for place in (load_file(work / "again" / "model.safetensors"), again.state_dict()):
    assert place.keys() == before.keys()
    assert all(torch.equal(place[key], before[key]) and place[key].dtype == before[key].dtype for key in before)
lacking = {key: value + 1 for key, value in before.items() if key != "llm.norm.weight"}
save_file(lacking, work / "again" / "model.safetensors", metadata={"format": "pt"})
filled, report = AutoModel.from_pretrained(work / "again", trust_remote_code=True, output_loading_info=True)
assert set(report["missing_keys"]) == {"llm.norm.weight"}, report
filled = filled.state_dict()
assert all(torch.equal(filled[key], lacking.get(key, torch.ones(len(filled[key])))) for key in filled)
from pipeline_videogpt import VideoGPTPipeline
pipeline = VideoGPTPipeline.from_pretrained(folder)
same(run(pipeline))
pictures = run(pipeline, output_type="pil")
assert [picture.size for picture in pictures] == [(64, 48)] * 3
pipeline.to("cpu").save_pretrained(work / "pipeline")
same(run(VideoGPTPipeline.from_pretrained(work / "pipeline")))
close(AutoModel.from_pretrained(work / "pipeline", trust_remote_code=True))
half = VideoGPTPipeline.from_pretrained(work / "pipeline", dtype=torch.bfloat16).model
assert half.dtype == torch.bfloat16
close(half, limit=0.05)
from diffusers import DiffusionPipeline
other = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, vae=pipeline.vae)
same(run(other))
print("fine")
"""
)

OFFLOAD = (
    START
    + """
import accelerate
from pipeline_videogpt import VideoGPTPipeline
pipeline = VideoGPTPipeline.from_pretrained(folder)
parts = {id(module): name for name, module in pipeline.components.items()}
assert set(pipeline.model_cpu_offload_seq.split("->")) == set(parts.values())
pictures = run(pipeline, output_type="np")
moves = []
def told(kind, method):
    def function(self, module, *rest, **more):
        moves.append((kind, parts[id(module)]))
        return method(self, module, *rest, **more)
    return function
for kind in ("pre_forward", "init_hook"):
    setattr(accelerate.hooks.CpuOffload, kind, told(kind, getattr(accelerate.hooks.CpuOffload, kind)))
# The device is the same one: what is brought where and when shows all the same.
pipeline.enable_model_cpu_offload(device="cpu")
assert moves == [("init_hook", "model"), ("init_hook", "vae")], moves
del moves[:]
assert np.array_equal(run(pipeline, output_type="np"), pictures)
order = [move for before, move in zip([None, *moves], moves) if move != before]
vae, model, out = ("pre_forward", "vae"), ("pre_forward", "model"), ("init_hook", "model")
# Pictures to latents, all clips, and the model leaves as the VAE decodes; in the end both leave.
assert order[0] == vae and order.index(model) > 0, order
last = len(order) - 1 - order[::-1].index(model)
assert order[last + 1 :][:2] == [vae, out] and set(order[-2:]) == {out, ("init_hook", "vae")}, order
print("fine")
"""
)
