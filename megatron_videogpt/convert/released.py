"""Reading a checkpoint folder in the released layout: Phi-3 style `config.json` and safetensors (reference README sections 1 and 7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ..config.schema import ModelConfig
from .mapping import EMBED_TOKENS, POSITION_TABLE, Parameter

ROPE_KEYS = ("type", "long_factor", "short_factor")


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: not found; expected a checkpoint folder with config.json and model.safetensors") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def read_model_config(folder: Path) -> tuple[ModelConfig, int]:
    """(model, latent channels) of a released folder.  What `config.json` has no field for comes from `extra.json` or from the tensors' shapes."""
    config = _json(folder / "config.json")
    tensors = TensorFolder(folder)
    channels, patch = tensors.shape("x_embedder.proj.weight")[1:3]
    scaling = config.get("rope_scaling") or {}
    if scaling and scaling.get("type", scaling.get("rope_type")) not in ("su", "longrope"):
        raise ValueError(f"{folder}/config.json: rope_scaling type {scaling.get('type')!r} is not supported; expected su or longrope")
    try:
        model = ModelConfig(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=config["num_attention_heads"],
            num_query_groups=config.get("num_key_value_heads") or config["num_attention_heads"],
            patch_size=patch,
            position_table_size=round(tensors.shape(POSITION_TABLE)[1] ** 0.5),
            norm_epsilon=config["rms_norm_eps"],
            rope_theta=config["rope_theta"],
            rope_scaling={"type": "longrope", **{key: scaling[key] for key in ROPE_KEYS[1:] if key in scaling}} if scaling else {},
            max_position_embeddings=config["max_position_embeddings"],
            original_max_position_embeddings=config.get("original_max_position_embeddings", config["max_position_embeddings"]),
        )
    except KeyError as error:
        raise ValueError(f"{folder}/config.json: field {error} is missing; expected a Phi-3 configuration") from None
    return model, channels


class TensorFolder:
    """The tensors of a folder's `*.safetensors` files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.files.update({key: path for key in file.keys()})
        if not self.files:
            raise ValueError(f"{folder}: no *.safetensors file; expected a checkpoint folder with config.json and model.safetensors")

    def _file(self, key: str) -> Path:
        if key not in self.files:
            raise ValueError(f"tensor {key} is missing from the checkpoint; it holds {len(self.files)} tensors, such as {', '.join(list(self.files)[:3])}")
        return self.files[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor without reading it."""
        with safe_open(self._file(key), framework="pt") as file:
            return tuple(file.get_slice(key).get_shape())

    def tensor(self, key: str) -> Tensor:
        """One tensor."""
        with safe_open(self._file(key), framework="pt") as file:
            return file.get_tensor(key)


def tensor_source(folder: Path, hint_ids: tuple[int, int, int]) -> Callable[[Parameter], Tensor]:
    """What `model.init.load_released` asks for: the released tensor of a table entry; of the text table the rows of `<|diffusion|>`, `<img>`, `</img>`."""
    tensors = TensorFolder(folder)

    def tensor_of(entry: Parameter) -> Tensor:
        value = tensors.tensor(entry.hf)
        return value[list(hint_ids)] if entry.hf == EMBED_TOKENS else value

    return tensor_of
