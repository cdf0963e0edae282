"""What a `config.json` of the factorised network of frame as prompt holds: the fields of the published checkpoints."""

from __future__ import annotations

from typing import Any

try:
    from transformers import PreTrainedConfig
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig

try:
    from .rules_frameprompt import CYCLIC, FIXED, PARTIAL, ROPE, previous_frames
except ImportError:  # the folder itself is on sys.path
    from rules_frameprompt import CYCLIC, FIXED, PARTIAL, ROPE, previous_frames  # type: ignore[no-redef]


class FramePromptConfig(PreTrainedConfig):
    """Sizes and rules of a model.

    input_size: rows and columns of a latent frame of in_channels; patch_size: 1, then those of a patch; hidden_size,
    depth, num_heads, mlp_ratio: of the blocks; pred_sigma: always true, the head predicts noise and variance.
    caption_channels, model_max_length: width and number of text features, 0 for a model without text;
    class_dropout_prob: of the text in training.
    temp_extra_in_channels: 1 for a channel that tells prompt frames, or 0; max_tpe_len: rows of the table of temporal
    positions; relative_tpe_mode: cyclic, null (fixed) or rope; spatial_attn_enhance: prev_frames_N, first_frame or
    null; is_causal: true, false or "partial"; space_scale, time_scale: what positions are divided by.

    chunk: frames that are denoised together, which published files do not say; released models have 8, with text 16.
    """

    model_type = "frame_prompt"
    attribute_map = {"num_hidden_layers": "depth", "num_attention_heads": "num_heads"}

    input_size: list | tuple = (32, 32)
    in_channels: int = 4
    patch_size: list | tuple = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    pred_sigma: bool = True
    caption_channels: int = 0
    model_max_length: int = 0
    space_scale: float = 1.0
    time_scale: float = 1.0
    temp_extra_in_channels: int = 1
    max_tpe_len: int = 33
    relative_tpe_mode: str | None = CYCLIC
    spatial_attn_enhance: str | None = "prev_frames_3"
    is_causal: bool | str = True
    chunk: int = 8

    def __init__(self, **fields: Any) -> None:
        sizes = {name: fields.pop(name, getattr(FramePromptConfig, name)) for name in SIZES}
        super().__init__(**fields)
        # Not by transformers: 4 keeps no defaults, and a saved file has to name all sizes.
        for name, value in sizes.items():
            setattr(self, name, list(value) if isinstance(value, (list, tuple)) else value)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.input_size[0] // self.patch_size[1], self.input_size[1] // self.patch_size[2]

    @property
    def ffn_size(self) -> int:
        """Width between the matrices of a feed-forward layer."""
        return int(self.hidden_size * self.mlp_ratio)

    def check(self) -> None:
        """ValueError, one line, where no model can be built of these sizes."""
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if not any(value == choice and type(value) is type(choice) for choice in known):
                raise ValueError(f"config.json: {name} is {value!r}; expected one of {known}")
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(f"config.json: patch_size is {self.patch_size}; expected [1, rows, columns]")
        if any(size < 1 or size % patch for size, patch in zip(self.input_size, self.patch_size[1:])):
            raise ValueError(
                f"config.json: input_size is {self.input_size}; expected multiples of patch_size={self.patch_size[1:]}"
            )
        if self.hidden_size % 4 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"config.json: hidden_size={self.hidden_size}; expected a multiple of 4 and of "
                f"num_heads={self.num_heads}"
            )
        if bool(self.caption_channels) != bool(self.model_max_length):
            raise ValueError(
                f"config.json: caption_channels={self.caption_channels}, model_max_length={self.model_max_length}; "
                "expected both, or 0 and 0 for a model without text"
            )
        if self.chunk < 1 or self.max_tpe_len < 1:
            raise ValueError(f"config.json: chunk={self.chunk}, max_tpe_len={self.max_tpe_len}; expected 1 or more")
        previous_frames(self.spatial_attn_enhance)


CHOICES: dict[str, tuple[Any, ...]] = {
    "relative_tpe_mode": (CYCLIC, FIXED, ROPE),
    "is_causal": (True, False, PARTIAL),
    "temp_extra_in_channels": (0, 1),
    "pred_sigma": (True,),
}
SIZES = tuple(name for name in FramePromptConfig.__annotations__ if name not in ("model_type", "attribute_map"))
FramePromptConfig.register_for_auto_class()
