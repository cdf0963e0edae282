"""What the model card of an exported folder says of the model and its use."""

from __future__ import annotations

import textwrap

from ....config.schema import Config
from .options import variant_of_run

WIDTH = 120
"""Of lines."""
TIME = {"causal": "causal", "full": "full", "partial": "causal among given frames"}


def card(config: Config) -> str:
    """See `Released`."""
    model, options, variant = config.model, config.objective, variant_of_run(config)
    parts = ["attention inside each frame"]
    if variant.enhance != "none":
        which = f"the last {variant.enhance_frames} frames" if variant.enhance == "prev_frames" else "the first frame"
        parts.append(f"attention to {which} of the prompt")
    parts.append(f"{TIME[variant.time]} attention along time")
    if variant.text_width:
        parts.append("attention to a text")
    steps, guidance = config.sample.steps, config.sample.guidance
    texts, text_note = "", ""
    if variant.text_width:
        texts = f"\n    prompt_embeds=features,\n    guidance_scale={guidance},"
        text_note = (
            f"\n`prompt_embeds` says what a video is to show: features [1, up to {variant.text_tokens}, "
            f"{variant.text_width}] of a text by the encoder\n`{config.condition.encoder}` that the model was trained "
            "with, which this folder does not hold.\n"
        )
    told = textwrap.fill(
        f"Continues a video: its last frames are the prompt of {options.chunk} noisy ones, which are denoised together "
        "and are the next prompt's end.  The factorised network of Ca2-VDM (arXiv 2411.16375): "
        f"{model.num_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads; in each layer "
        f"{', '.join(parts)}.  It predicts noise and its variance.  {options.factorised.places} temporal positions; "
        f"prompts of {', '.join(map(str, options.prompts))} frames.",
        WIDTH,
    )
    return f"""# Frame as prompt video model

{told}

## Use

```python
import sys
from huggingface_hub import snapshot_download
from transformers import AutoModel

folder = snapshot_download("OWNER/NAME")  # or a local folder
model = AutoModel.from_pretrained(folder, trust_remote_code=True)  # the network alone

sys.path.insert(0, folder)
from pipeline_frameprompt import FramePromptPipeline

pipeline = FramePromptPipeline.from_pretrained(folder)
# frames: PIL images, or uint8 [F, H, W, 3]
pictures = pipeline(
    frames,
    chunks=4,
    num_inference_steps={steps},
    solver="{options.factorised.solver}",
    prompt_noise={options.factorised.sample_prompt_step},{texts}
)[0]
```
{text_note}
`trust_remote_code` runs the Python files of this folder: read them first.  They need torch, transformers >=4.57, <6,
diffusers >=0.36, safetensors, numpy and Pillow.
"""
