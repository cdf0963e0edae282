"""What a `config.json` of the exported model of next block prediction holds."""

from __future__ import annotations

from typing import Any

try:
    from transformers import PreTrainedConfig
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig

MODES = ("unconditional", "hybrid", "given_first_block")


class NextBlockConfig(PreTrainedConfig):
    """Sizes and ids of a model.

    mode: unconditional (the first block is given), hybrid (the whole video is generated, its first block a token at a
    time) or given_first_block (behind a condition); block: tokens of a block; block_shape: its latent frames, rows and
    columns, None for runs of the raster order.  codes: of the tokenizer; text_ids: of classes, or of words; prefix:
    condition tokens before a video; prefix_kind: none, label or text; class_names: in the order of their numbers.
    latent: frames, rows and columns of the videos that it was trained on.

    norm: layer or rms; activation: gelu, gelu_tanh or swiglu; biases: of the layers' matrices; positions: learned (a
    table of max_positions), rope or none; num_query_groups: heads of keys and values, 0 for num_heads.
    """

    model_type = "nbp"
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}

    mode: str = "unconditional"
    block: int = 16
    block_shape: list | None = None
    codes: int = 64000
    text_ids: int = 0
    prefix: int = 0
    prefix_kind: str = "none"
    class_names: list | None = None
    vocab_size: int = 64000
    latent: list | None = None
    max_positions: int = 5120
    num_layers: int = 24
    num_heads: int = 16
    num_query_groups: int = 0
    hidden_size: int = 1536
    ffn_size: int = 6144
    layer_norm_eps: float = 1e-5
    norm: str = "layer"
    activation: str = "gelu"
    biases: bool = True
    positions: str = "learned"
    rope_theta: float = 10000.0
    init_std: float = 0.02

    def __init__(self, **fields: Any) -> None:
        sizes = {name: fields.pop(name, getattr(NextBlockConfig, name)) for name in SIZES}
        super().__init__(**fields)
        # Not by transformers: 4 keeps no defaults, and a saved file has to name all sizes.
        for name, value in sizes.items():
            setattr(self, name, value)

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.num_query_groups or self.num_heads

    @property
    def condition_offset(self) -> int:
        """Id of condition 0."""
        return self.block if self.mode == "hybrid" else 0

    @property
    def code_offset(self) -> int:
        """Id of code 0."""
        return self.condition_offset + self.text_ids

    def check(self) -> None:
        """ValueError, one line, where no model can be built of these sizes."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"config.json: {name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.hidden_size % self.num_heads or self.num_heads % self.groups:
            raise ValueError(
                f"config.json: hidden_size={self.hidden_size}, num_heads={self.num_heads}, num_query_groups="
                f"{self.groups}: heads must divide the width, and heads of keys and values the heads"
            )
        size = self.code_offset + self.codes + (self.mode == "given_first_block")
        if self.vocab_size != size:
            raise ValueError(
                f"config.json: vocab_size={self.vocab_size}; mode {self.mode} with {self.codes} codes, blocks of "
                f"{self.block} and {self.text_ids} ids of a condition has {size}"
            )


CHOICES = {
    "mode": MODES,
    "prefix_kind": ("none", "label", "text"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "gelu_tanh", "swiglu"),
    "positions": ("learned", "rope", "none"),
}
SIZES = tuple(name for name in NextBlockConfig.__annotations__ if name not in ("model_type", "attribute_map"))
NextBlockConfig.register_for_auto_class()
