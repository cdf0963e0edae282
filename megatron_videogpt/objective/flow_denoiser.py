"""A model as what the sampler calls: histories and noisy clips in, clean latents out.

What an objective's sequences look like is its own affair: `Form`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.derived import require_positions
from ..config.schema import Config
from ..model.forward import forward_row
from ..model.patches import grid_of, unpatchify
from ..model.prefix import no_prefix
from ..sequence.row import Row
from .flow_rows import Sequence

Function = Callable[[list[Tensor], list[Tensor], float, "list[Tensor | None]"], list[Tensor]]
"""`function(histories, clips, t, conditions)`: see `predict_function`."""


class Form(NamedTuple):
    """How the sequences of an objective look that samples with `flow_cache.CachedDenoiser` or `predict_function`.
    Latents ``[n, C, h, w]`` are on the host, float32.

    whole: `whole(history, clip, t, condition)` -> all that the model needs to denoise a clip at timestep t.

    past: `past(frames, position)` -> finished frames, whose first token has that position; stored in order, each token
    sees all before it up to the end of some part of its own frame.

    clip: `clip(noisy, position)` -> noisy frames, whose scored tokens are all of their patches; each token's first
    interval is empty, and left for what comes before.

    assemble: `assemble(sequences, patch, table_side, multiple, no_prefix)` -> a row of any of these, see
    `flow_rows.assemble`.
    """

    whole: Callable[[Tensor, Tensor, float, Tensor | None], Sequence]
    past: Callable[[Tensor, int], Sequence]
    clip: Callable[[Tensor, int], Sequence]
    assemble: Callable[[list[Sequence], int, int, int, Tensor | None], Row]


def predict_function(chunks: list[Any], config: Config, device: torch.device, form: Form) -> Function:
    """`function(histories, clips, t, conditions)`: each history ``[H, C, h, w]`` (H may be 0) and noisy clip ``[G, C,
    h, w]`` at timestep t, with its condition (`Denoiser.begin`) -> predicted clean clips.

    Several videos share one packed row; sizes and lengths may differ.
    """

    def denoise(
        histories: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]
    ) -> list[Tensor]:
        """See `predict_function`."""
        sequences = [
            form.whole(history.cpu().float(), clip.cpu().float(), t, on_host(condition))
            for history, clip, condition in zip(histories, clips, conditions, strict=True)
        ]
        row = placed_row(form, sequences, config)
        output = forward_row(chunks, row.to(device), row.streams["noisy"]["patch"].shape[1])
        return clips_of(output.cpu(), clips, config.model.patch_size)

    return denoise


def placed_row(form: Form, sequences: list[Sequence], config: Config) -> Row:
    """A row of the sequences, on the host; UserError where the model has not learned all of its positions."""
    model, multiple = config.model, config.parallel.row_multiple
    row = form.assemble(sequences, model.patch_size, model.position_table_size, multiple, no_prefix(config))
    require_positions(config, int(row.positions.max()) + 1, "the history and the clip")
    return row


def tokens_of(condition: Tensor | None) -> int:
    """Tokens that a condition takes before a video."""
    return 0 if condition is None else len(condition)


def on_host(condition: Tensor | None) -> Tensor | None:
    """The same in host memory."""
    return None if condition is None else condition.cpu()


def clips_of(output: Tensor, clips: list[Tensor], patch: int) -> list[Tensor]:
    """Patches of all noisy clips of a row ``[patches, p*p*C]`` -> latents, each like its clip ``[G, C, h, w]``, on its
    device.
    """
    grids = [grid_of(clip, patch) for clip in clips]
    parts = output.split([len(clip) * rows * columns for clip, (rows, columns) in zip(clips, grids)])
    return [unpatchify(part, len(clip), grid, patch).to(clip.device) for part, clip, grid in zip(parts, clips, grids)]
