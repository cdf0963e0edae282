"""The parts of an exported Hugging Face folder that do not depend on weights: its Python files, `config.json`,
`model_index.json` and the VAE.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..codec import geometry
from ..codec.options import CodecConfig
from ..condition.options import NONE, ConditionConfig
from ..config.schema import ModelConfig
from ..errors import UserError
from ..hub.common import tiny_codec as tiny_module
from ..hub.common.vae_videogpt import VAE_WEIGHTS, weight_files
from .conditions import condition_fields

BACKBONE = ("norm", "activation", "biases", "positions", "dropout")
"""Options of the model that `config.json` has under their own names."""
AUTO_MAP = {"AutoConfig": "configuration_videogpt.VideoGPTConfig", "AutoModel": "modeling_videogpt.VideoGPTModel"}


def write_code(folder: Path, tiny_codec: bool) -> None:
    """Copy the Python files into one folder and write its `model_index.json`; call it after `write_vae`.

    tiny_codec: the folder's VAE is the tiny codec, whose code then comes along.
    """
    # diffusers takes a second to import, which only an export should pay.
    from ..hub import next_clip
    from ..hub.common import frames_videogpt

    settings = folder / "vae" / "config.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("_class_name") if settings.is_file() else None
    frames_videogpt.write_code(folder, kind, Path(next_clip.__file__).parent)
    if tiny_codec:
        shutil.copyfile(tiny_module.__file__, folder / Path(tiny_module.__file__).name)


def hub_config(
    model: ModelConfig,
    channels: int,
    hint_ids: tuple[int, int, int],
    vocab_size: int,
    original: dict[str, Any] | None,
    longest_side: int | None = None,
    condition: ConditionConfig = NONE,
) -> dict[str, Any]:
    """`config.json` of an exported folder.

    Args:
        model, channels: sizes of the model, and its latent channels.
        hint_ids: rows of `<|diffusion|>`, `<img>`, `</img>` in the exported text table of `vocab_size` rows.
        original: fields of the folder that the weights once came from: all of them survive, and only what they lack is
            added.
        longest_side: pixels that the pipeline resizes the longer side of a picture to; None leaves its own default.
        condition: what the model was trained with.
    """
    fields: dict[str, Any] = {
        "architectures": ["VideoGPTModel"],
        "model_type": "videogpt",
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ffn_hidden_size,
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "rope_scaling": model.rope_scaling or None,
        "max_position_embeddings": model.max_position_embeddings,
        "original_max_position_embeddings": model.original_max_position_embeddings,
        "initializer_range": model.init_std,
        "tie_word_embeddings": False,
    }
    if longest_side is not None:
        fields["longest_side"] = longest_side
    if not model.gated:
        # Phi-3's field is that of a gate.
        del fields["hidden_act"]
    ours = {
        "patch_size": model.patch_size,
        "in_channels": channels,
        "pos_embed_max_size": model.position_table_size,
        "diffusion_token_id": hint_ids[0],
        "img_start_token_id": hint_ids[1],
        "img_end_token_id": hint_ids[2],
        "auto_map": AUTO_MAP,
    }
    merged = fields | (original or {}) | ours
    # The options of the backbone where they are not the defaults, which folders need not name.
    plain = ModelConfig()
    merged |= {
        name: getattr(model, name)
        for name in BACKBONE
        if getattr(model, name) != merged.get(name, getattr(plain, name))
    }
    return merged | condition_fields(condition)


def write_vae(folder: Path, codec: CodecConfig) -> None:
    """Write `folder/vae`: the tiny codec, or a copy of the codec's diffusers folder (its settings and safetensors,
    nothing else).

    Raises:
        ValueError: the codec's folder is not usable, as `codec.build.build_codec` says, or its kind is none that the
            pipeline of a folder runs.
    """
    geometry.codec_geometry(codec)
    if codec.name == geometry.PIXELS:
        raise UserError(
            "codec.name=pixels: the pipeline of an exported folder runs latents of a VAE, "
            f"tiny, {' or '.join(geometry.DIFFUSERS_CLASSES)}, and this run's are the frames themselves"
        )
    if codec.name in geometry.FSQ_NAMES:
        raise UserError(
            f"codec.name={codec.name}: the pipeline of an exported folder runs tiny, "
            f"{' and '.join(geometry.DIFFUSERS_CLASSES)}, and the model knows no other latents; the tokenizer's folder "
            "stands alone (megatron-videogpt convert tokenizer)"
        )
    target = folder / "vae"
    if codec.name == "tiny":
        target.mkdir(exist_ok=True)
        shape = json.loads(geometry.TINY_SHAPE.read_text(encoding="utf-8"))
        write_json(target / "config.json", {"_class_name": "TinyAutoencoder", **shape})
        shutil.copyfile(geometry.TINY_WEIGHTS, target / VAE_WEIGHTS)
        return
    try:
        weight_files(Path(codec.path))
    except ValueError as error:
        raise UserError(f"codec.path={error}") from error
    target.mkdir(exist_ok=True)
    for path in vae_files(Path(codec.path)):
        shutil.copyfile(path, target / path.name)


def vae_files(folder: Path) -> list[Path]:
    """What of a diffusers VAE's folder travels along: its settings, all its safetensors (a checkpoint of an earlier
    release tells the VAE by copies that are not read, too) and the index of its shards.
    """
    weights = sorted(folder.glob("*.safetensors"))
    return [folder / "config.json", *weights, *sorted(folder.glob("*.safetensors.index.json"))]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented JSON with a last newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
