"""Folders with random weights of several types, and the way to a run and back in this process, for the tests of
conversion.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.convert import ingest
from megatron_videogpt.convert import settings as folder_settings
from megatron_videogpt.convert.folder import Folder
from tests import dense
from tests.hub_folder import HINTS, released, settings

TINY = dense.Tiny(width=32, ffn=48, table=8)
MODELS = {
    "multi-head": TINY,
    "grouped-query": replace(TINY, groups=2, layers=3),
    "long RoPE": replace(TINY, long_factor=(1.0, 1.3, 1.6, 1.9), longest=131072),
    "like GPT-2": replace(
        TINY, groups=2, norm="layer", activation="gelu", biases=True, positions="learned", longest=160, dropout=0.1
    ),
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "classes": {"class_names": ["fall", "bounce/left", "übrige"]},
    "texts": {"text_feature_size": 12},
}
"""Models of `TINY` with a condition, and what their config.json has of it."""
DTYPES = ("fp32", "bf16", "mixed")


def tensors_of(tiny: dense.Tiny, dtype: str, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a whole folder, an unused lm_head among them; mixed: norms and biases in float32 beside
    bfloat16.
    """
    found = released(dense.random_weights(tiny, seed), tiny) | {
        "lm_head.weight": torch.randn(6, tiny.width, generator=torch.Generator().manual_seed(seed))
    }
    keep = {
        key for key in found if dtype == "fp32" or key == "pos_embed" or (dtype == "mixed" and found[key].ndim == 1)
    }
    return {key: value.contiguous() if key in keep else value.contiguous().bfloat16() for key, value in found.items()}


def condition_tensors(fields: dict[str, Any], tiny: dense.Tiny = TINY) -> dict[str, Tensor]:
    """Random tensors of what makes a condition's tokens."""
    draws = torch.Generator().manual_seed(9)
    if "class_names" in fields:
        return {"class_embedding.weight": torch.randn(len(fields["class_names"]), tiny.width, generator=draws)}
    shape = (tiny.width, fields["text_feature_size"])
    return {
        "text_projection.weight": torch.randn(shape, generator=draws) / 3,
        "text_projection.bias": torch.randn(shape[0], generator=draws),
    }


def folder_of(path: Path, tiny: dense.Tiny, tensors: dict[str, Tensor], **fields: Any) -> Path:
    """A folder as somebody else made it: Phi-3's type, no code, hint tokens named by a tokenizer, files that travel
    along.
    """
    path.mkdir(parents=True)
    ours = (
        "auto_map",
        "patch_size",
        "in_channels",
        "pos_embed_max_size",
        "diffusion_token_id",
        "img_start_token_id",
        "img_end_token_id",
        "longest_side",
    )
    config = (
        {key: value for key, value in settings(tiny).items() if key not in ours}
        | {"model_type": "phi3", "bos_token_id": 1}
        | fields
    )
    (path / "config.json").write_text(json.dumps(config))
    (path / "added_tokens.json").write_text(json.dumps(dict(zip(("<|diffusion|>", "<img>", "</img>"), HINTS))))
    (path / "LICENSE").write_text("terms")
    (path / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n")
    save_file(tensors, path / "model.safetensors")
    return path


def to_run(
    folder: Path,
    run: Path,
    dtype: torch.dtype | None = None,
    codec: CodecConfig | None = None,
    vae: Path | None = None,
    **options: Any,
) -> ingest.Source:
    """What `from-hf` does in one process; the fixture `processes` comes first."""
    from megatron_videogpt.convert import new_run

    codec = codec or folder_settings.codec_of(None)
    source = ingest.open_source(
        Folder(folder), codec, options.pop("hint_ids", None), dtype, options.pop("allow_extra", False)
    )
    config = new_run.run_config(source, codec, run, 1, 1)
    new_run.checkpoint_of(run).mkdir(parents=True)
    new_run.write_checkpoint(source, config, new_run.checkpoint_of(run), ignore)
    new_run.finish(source, config, run, vae, ignore)
    return source


def to_folder(
    run: Path,
    folder: Path,
    license: str | None = None,
    max_bytes: int = 10**9,
    tokenizer: Path | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """What `to-hf` does; returns the tensors as safetensors' own reader finds them."""
    from megatron_videogpt.convert.export import Export
    from megatron_videogpt.convert.write import write_folder

    write_folder(Export(run, **options), folder, max_bytes, None, tokenizer, license, ignore)
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def ignore(count: int) -> None:
    """Nobody watches."""


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """The same keys, types and bits."""
    assert first.keys() == second.keys()
    different = [
        key for key in first if first[key].dtype != second[key].dtype or not torch.equal(first[key], second[key])
    ]
    assert not different
