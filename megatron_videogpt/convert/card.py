"""The model card of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..condition.folder import text_width
from ..config.options import options, value_of
from ..config.schema import Config
from ..config.toml import show

SECTIONS = ("model", "codec", "data", "condition", "objective", "optimizer", "train")
"""Whose options the table shows where they differ from their defaults; all of them are in videogpt_config.toml."""

RUNS_WITH = {"transformers": ">=4.57,<6", "diffusers": ">=0.36"}
"""What the folder's files need beside torch, as in pyproject.toml's extra `hub`."""
TRIED = (("4.57.1", "0.36.0"), ("5.0.0", "0.37.1"), ("5.23.0", "0.42.1"))
"""Versions of them that tests/data/test_hub_environment.py runs exported folders with."""


class Exported(Protocol):
    """What the card tells of: `export.Export`."""

    @property
    def config(self) -> Config: ...
    @property
    def path(self) -> Path: ...
    @property
    def average(self) -> bool: ...
    @property
    def side(self) -> Any: ...
    @property
    def weights(self) -> Any: ...


def model_card(export: Exported, license: str | None) -> str:
    """README.md: front matter for the Hub, what the model is, how to use it, its configuration and where it comes from.

    license: None takes that of the folder the run came from, or "unknown".
    """
    config, side = export.config, export.side
    licence = license or (side.facts.get("license") if side else None) or "unknown"
    origin = {
        None: "was trained from scratch",
        "videogpt": "started from a folder in the released Video-GPT layout",
        "phi3": "started from a stock Phi-3 backbone",
    }
    came = origin[side.facts["format"] if side else None]
    kind = "the moving average of the weights" if export.average else "the weights"
    model, sample, clips = config.model, config.sample, list(config.sample.clips)
    needs = " and ".join(f"{name} {versions.replace(',', ', ')}" for name, versions in RUNS_WITH.items())
    tried = ", ".join(f"{first} with {second}" for first, second in TRIED)
    return f"""---
license: {licence}
library_name: transformers
pipeline_tag: image-to-video
tags:
- video
- video-prediction
- next-clip-diffusion
- videogpt
---

# Next-clip diffusion video model

Continues a video: given frames, it generates the next clip of frames by diffusion in the latent space of a VAE, then
the clip after that, and so on.  A decoder of {model.num_layers} layers, width {model.hidden_size}, with
{model.num_attention_heads} query heads ({model.kv_heads} for keys and values); latents of {export.weights.channels}
channels in patches of {model.patch_size} x {model.patch_size}.

## Use

```python
import sys
from huggingface_hub import snapshot_download
from transformers import AutoModel

folder = snapshot_download("OWNER/NAME")  # or a local folder
model = AutoModel.from_pretrained(folder, trust_remote_code=True)  # the network alone

sys.path.insert(0, folder)
from pipeline_videogpt import VideoGPTPipeline

pipeline = VideoGPTPipeline.from_pretrained(folder)
# frames: PIL images, or uint8 [F, H, W, 3]
steps, guidance = {sample.steps}, {sample.guidance}
result = pipeline(video=frames, clips={clips}, num_inference_steps=steps, guidance_scale=guidance).frames
```
{_condition(config)}
`trust_remote_code` runs the Python files of this folder: read them first.  They need torch,
{needs} (tried: {tried}).
Where the model and the VAE do not fit the device together: `pipeline.enable_model_cpu_offload()` (needs accelerate)
instead of `pipeline.to("cuda")`.

## Training data

*To be filled in: what the model was trained on, and under which terms.*

## Configuration

The model {came}.  Options that differ from the defaults of megatron_videogpt; `videogpt_config.toml` has all of them.

| option | value |
| --- | --- |
{_table(config)}

## How this folder was made

`convert to-hf` of megatron_videogpt wrote {kind} of
`{export.path.parent.parent.name}/{export.path.name}`, and compared what it wrote with the checkpoint.
"""


def front_and_origin(export: Exported, license: str | None) -> tuple[str, str]:
    """What stands before and behind the part of a card that an objective writes: front matter; configuration, and where
    the folder comes from.
    """
    side = export.side
    licence = license or (side.facts.get("license") if side else None) or "unknown"
    came = "was trained from scratch" if side is None else f"started from a published one ({side.facts['format']})"
    kind = "the moving average of the weights" if export.average else "the weights"
    front = f"---\nlicense: {licence}\nlibrary_name: transformers\ntags:\n- video\n- video-prediction\n---\n\n"
    return (
        front,
        f"""
## Training data

*To be filled in: what the model was trained on, and under which terms.*

## Configuration

The model {came}.  Options that differ from the defaults of megatron_videogpt; `videogpt_config.toml` has all of them.

| option | value |
| --- | --- |
{_table(export.config)}

## How this folder was made

`convert to-hf` of megatron_videogpt wrote {kind} of
`{export.path.parent.parent.name}/{export.path.name}`, and compared what it wrote with the checkpoint.
""",
    )


def _condition(config: Config) -> str:
    """How to say what a video is to show; nothing of a model without a condition."""
    condition = config.condition
    if condition.kind == "class":
        names = ", ".join(condition.classes[:12]) + (", ..." if len(condition.classes) > 12 else "")
        return (
            f"\n`class_labels={condition.classes[0]!r}`, with or without a video, says what it is to show: one of "
            f"{len(condition.classes)} classes ({names}).\n"
        )
    if condition.kind == "text":
        return (
            f"\n`prompt_embeds=features`, with or without a video, says what it is to show: the features [tokens, "
            f"{text_width(condition)}] of a text by the encoder {condition.encoder} that it was trained with.\n"
        )
    return ""


def _table(config: Config) -> str:
    rows = [
        f"| {option.name} | `{show(value_of(config, option.name))}` |"
        for option in options(of=config)
        if option.name.split(".")[0] in SECTIONS
        and option.name
        not in (
            "codec.path",
            "condition.encoder_path",
            "data.path",
            "data.mixture",
            "data.cache",
            "train.output",
            "train.init_from",
        )
        and (option.name.startswith("model.") or value_of(config, option.name) != option.default)
    ]
    return "\n".join(rows)
