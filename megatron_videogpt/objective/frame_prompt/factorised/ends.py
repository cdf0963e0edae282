"""What stands around the factorised layers: patches in, noise and variance out, and the networks of the timestep and
the text, which every layer reads (reference README section 2).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....config.schema import ModelConfig
from ....model.factorised import MERGE_BIAS, MERGE_WEIGHT, MODULATION, TEXT
from ....model.factorised_layer import factorised_kind
from ....model.layers import LayerKind
from ....model.patches import sine_table
from ....model.per_frame import modulate
from ....model.timesteps import TimestepNetwork
from ....model.videogpt import Ends
from ....sequence.row import Context, Row
from .parameters import table_of
from .rows import ABSENT, WORDS
from .variant import Variant

LEVEL = "level"
"""The timestep's embedding of each frame ``[F, D]``, which the head gets."""


class PatchEmbedding(nn.Module):
    """Patches to hidden states, with their row and column added as sines, from the corner."""

    axis: Tensor

    def __init__(
        self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device, variant: Variant
    ) -> None:
        super().__init__()
        self.patch = nn.Linear(model.patch_size**2 * channels, model.hidden_size, dtype=dtype, device=device)
        places = torch.arange(model.position_table_size, dtype=torch.float32) / variant.space_scale
        self.register_buffer("axis", sine_table(places, model.hidden_size // 2).to(device), persistent=False)

    def forward(self, row: Row) -> Tensor:
        """A packed row, or a shard of one -> ``[l, 1, D]`` in the parameters' dtype; padding rows are zero."""
        tokens, dtype = row.streams["patch"], self.patch.weight.dtype
        place = tokens["place"]
        table = torch.cat([self.axis.index_select(0, place[:, 1]), self.axis.index_select(0, place[:, 0])], dim=-1)
        values = self.patch(tokens["value"].to(dtype)) + table.to(dtype)
        hidden = torch.zeros(len(row.positions), values.shape[1], dtype=dtype, device=values.device)
        return hidden.index_put((tokens.rows,), values).unsqueeze(1)


class _TextNetwork(nn.Module):
    """Linear, GELU by its approximation, linear."""

    def __init__(self, given: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.fc1 = nn.Linear(given, width, dtype=dtype, device=device)
        self.fc2 = nn.Linear(width, width, dtype=dtype, device=device)

    def forward(self, words: Tensor) -> Tensor:
        """``[n, E]`` -> ``[n, D]``."""
        return self.fc2(F.gelu(self.fc1(words), approximate="tanh"))


class Sides(nn.Module):
    """Modulation of each frame, its timestep for the head, the texts, and what only the first layer has."""

    def __init__(
        self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device, variant: Variant
    ) -> None:
        super().__init__()
        width = model.hidden_size
        self.timestep = TimestepNetwork(width, dtype, device)
        self.block = nn.Linear(width, 6 * width, dtype=dtype, device=device)
        self.merge = nn.Linear(width + 1, width, dtype=dtype, device=device) if variant.mask_channel else None
        self.no_text: nn.Parameter | None = None
        if variant.text_width:
            self.text = _TextNetwork(variant.text_width, width, dtype, device)
            table = torch.empty(variant.text_tokens, variant.text_width, dtype=dtype, device=device)
            self.no_text = nn.Parameter(table)

    def forward(self, row: Row) -> dict[str, Context]:
        """See the class."""
        level = self.timestep(row.units["timestep"])
        found = {MODULATION: Context(self.block(F.silu(level))), LEVEL: Context(level)}
        if self.merge is not None:
            found |= {MERGE_WEIGHT: Context(self.merge.weight), MERGE_BIAS: Context(self.merge.bias)}
        if self.no_text is None:
            return found
        words, absent = row.context[WORDS].value.to(self.no_text.dtype), row.context[ABSENT].value
        # The table gets a gradient of zero: it is not trained, and reduction waits for every parameter.
        instead = self.no_text.detach().index_select(0, absent.clamp(min=0)) + 0 * self.no_text.sum()
        words = torch.where((absent >= 0)[:, None], instead, words)
        return {**found, TEXT: Context(self.text(words))}


class Head(nn.Module):
    """A norm without weights, modulated by the frame's timestep, then a linear map to a patch of 2C channels."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width = model.hidden_size
        self.eps = model.norm_epsilon
        self.table = nn.Parameter(torch.empty(2, width, dtype=dtype, device=device))
        self.linear = nn.Linear(width, 2 * channels * model.patch_size**2, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, row: Row, sides: dict[str, Tensor], scored: bool = False) -> Tensor:
        """Of scored tokens float32 ``[n, p*p*2C]``, channel fastest: the first C are noise, the others raw variance."""
        tokens = row.streams[row.scored]
        x = hidden.squeeze(1) if scored else hidden.squeeze(1).index_select(0, tokens.rows)
        shift, scale = (sides[LEVEL][:, None] + self.table).unbind(1)
        return self.linear(modulate(x, shift, scale, tokens["frame"], self.eps)).float()


def _layer(model: ModelConfig, number: int, variant: Variant) -> LayerKind:
    return factorised_kind(variant.pieces(number == 0))


def ends_of(variant: Variant) -> Ends:
    """What stands around the layers of a network, and what these are."""
    return Ends(
        partial(PatchEmbedding, variant=variant),
        Head,
        table_of(variant),
        layer=partial(_layer, variant=variant),
        sides=partial(Sides, variant=variant),
        head_sides=(LEVEL,),
        final_norm=False,
    )
