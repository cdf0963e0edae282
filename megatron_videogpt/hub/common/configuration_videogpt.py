"""What a `config.json` of the exported model holds: the fields of a Phi-3 configuration, and those that the video model
needs beside them.
"""

from __future__ import annotations

import math
from typing import Any

try:
    from transformers import PreTrainedConfig
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig


class VideoGPTConfig(PreTrainedConfig):
    """Sizes of a next-clip-diffusion model; fields named as in Phi-3 mean what they mean there.

    patch_size: latent cells per patch side; in_channels: latent channels; pos_embed_max_size: side S of the 2-D
    position table, in patches; diffusion_token_id, img_start_token_id, img_end_token_id: rows of the text embedding
    table that hold the three hint tokens; longest_side: pixels that the pipeline resizes the longer side of a picture
    to; class_names: of the classes that the model was trained with, in the order of their numbers; text_feature_size:
    width of the text features that it was trained with; both None for a model without a condition.  norm: rms or layer;
    activation: swiglu, gelu or gelu_tanh; biases: of all matrices of the layers; positions: rope, learned (a table of
    max_position_embeddings rows) or none; dropout: of training, not applied here.
    """

    model_type = "videogpt"

    hidden_size: int = 3072
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    intermediate_size: int = 8192
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    patch_size: int = 2
    in_channels: int = 4
    pos_embed_max_size: int = 192
    diffusion_token_id: int | None = None
    img_start_token_id: int | None = None
    img_end_token_id: int | None = None
    longest_side: int = 320
    class_names: list | None = None
    text_feature_size: int | None = None
    norm: str = "rms"
    activation: str = "swiglu"
    biases: bool = False
    positions: str = "rope"
    dropout: float = 0.0

    def __init__(self, **fields: Any) -> None:
        sizes = {name: fields.pop(name, getattr(VideoGPTConfig, name)) for name in SIZES}
        super().__init__(**fields)
        # Not by transformers: 4 keeps no defaults, and a saved file has to name all sizes; 5 rewrites a rope_scaling.
        for name, value in sizes.items():
            setattr(self, name, value)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """See transformers; a folder made by others says "phi3", which transformers would warn about."""
        settings, rest = super().get_config_dict(*args, **kwargs)
        return settings | {"model_type": cls.model_type}, rest

    @property
    def kv_heads(self) -> int:
        """Key/value heads; as many as query heads where the file names none."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def hint_ids(self) -> tuple[int, int, int]:
        """Rows of `<|diffusion|>`, `<img>`, `</img>` in the text embedding table; ValueError where the file does not
        name them.
        """
        ids = (self.diffusion_token_id, self.img_start_token_id, self.img_end_token_id)
        if any(not isinstance(number, int) or not 0 <= number < self.vocab_size for number in ids):
            raise ValueError(
                f"config.json: diffusion_token_id, img_start_token_id, img_end_token_id are {list(ids)}: "
                f"expected three numbers from 0 to {self.vocab_size - 1}, those of <|diffusion|>, <img>, "
                "</img> in the model's tokenizer"
            )
        return ids  # type: ignore[return-value]

    def check(self) -> None:
        """ValueError, one line, where no model can be built of these sizes."""
        _ = self.hint_ids
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"config.json: {name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if (
            self.hidden_size % (2 * self.num_attention_heads)
            or self.hidden_size % 4
            or self.num_attention_heads % self.kv_heads
        ):
            raise ValueError(
                f"config.json: hidden_size={self.hidden_size}, "
                f"num_attention_heads={self.num_attention_heads}, num_key_value_heads={self.kv_heads}: "
                "heads need an even size, hidden_size must divide by 4, and query heads by key/value heads"
            )
        if not self.rope_scaling:
            return
        kind, half = (
            self.rope_scaling.get("type", self.rope_scaling.get("rope_type")),
            self.hidden_size // self.num_attention_heads // 2,
        )
        if kind not in ("su", "longrope"):
            raise ValueError(f"config.json: rope_scaling type {kind!r} is not supported; expected su or longrope")
        if len(self.rope_factors) != half:
            raise ValueError(
                f"config.json: rope_scaling has {len(self.rope_factors)} factors; expected {half}, half the "
                "size of a head"
            )

    @property
    def rope_factors(self) -> list[float]:
        """Long RoPE's divisors of the frequencies, empty for none.

        The released model names the length 5000 to its rotary code, whatever the sequence, and that length chooses
        between long and short factors.
        """
        return (self.rope_scaling or {}).get(
            "long_factor" if self.original_max_position_embeddings < 5000 else "short_factor", []
        )

    @property
    def rope_attention_factor(self) -> float:
        """What long RoPE multiplies cosines and sines by."""
        ratio = self.max_position_embeddings / self.original_max_position_embeddings
        if not self.rope_scaling or ratio <= 1:
            return 1.0
        return math.sqrt(1 + math.log(ratio) / math.log(self.original_max_position_embeddings))


CHOICES = {
    "norm": ("rms", "layer"),
    "activation": ("swiglu", "gelu", "gelu_tanh"),
    "positions": ("rope", "learned", "none"),
}
SIZES = tuple(name for name in VideoGPTConfig.__annotations__ if name != "model_type")
VideoGPTConfig.register_for_auto_class()
