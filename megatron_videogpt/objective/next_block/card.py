"""What the model card of an exported folder says of the model and its use."""

from __future__ import annotations

from ...config.schema import Config
from .vocabulary import HYBRID, vocabulary_of


def card(config: Config) -> str:
    """Markdown, from the title to the end of the section on use."""
    model, vocabulary, names = config.model, vocabulary_of(config), config.condition.classes
    shape = config.objective.block_shape
    block = " x ".join(map(str, shape)) if shape else f"a run of {vocabulary.block}"
    texts = config.condition.kind == "text"
    given = "class_labels=" + repr(names[0]) if names else 'texts="..."' if texts else "video=frames"
    both = "" if not (names or texts) or vocabulary.layout == HYBRID else ", video=frames"
    classes = ""
    if texts:
        count = config.condition.tokens
        classes = (
            f"\n`texts` says what a video is to show: texts, or {count} ids each.  Texts need the tokenizer that the "
            "model was trained\nwith: `text_tokenizer/` of this folder, or `from_pretrained(folder, "
            "text_tokenizer=ANOTHER)`.\n"
        )
    elif names:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        classes = f"\n`class_labels` says what a video is to show: one of {len(names)} classes ({shown}).\n"
    return f"""# Next block prediction video model

Continues a video, or makes one: tokens of an FSQ tokenizer ({vocabulary.codes:,} codes) are predicted a block ({block}
tokens) at a time.  A decoder of {model.num_layers} layers, width {model.hidden_size}, with {model.num_attention_heads}
heads; {vocabulary.size:,} ids, layout {vocabulary.layout}.

## Use

```python
import sys
from huggingface_hub import snapshot_download
from transformers import AutoModel

folder = snapshot_download("OWNER/NAME")  # or a local folder
model = AutoModel.from_pretrained(folder, trust_remote_code=True)  # the network alone

sys.path.insert(0, folder)
from pipeline_nextblock import NextBlockPipeline

pipeline = NextBlockPipeline.from_pretrained(folder)
# frames: PIL images, or uint8 [F, H, W, 3]
pictures = pipeline({given}{both})[0]
```
{classes}
`trust_remote_code` runs the Python files of this folder: read them first.  They need torch, transformers >=4.57, <6,
safetensors, numpy and Pillow.
"""
