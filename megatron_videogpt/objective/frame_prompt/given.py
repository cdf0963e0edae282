"""Frames that are given to a model to go on from, against what it was built for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...errors import UserError


def check_given(histories: Sequence[Tensor], patch: int, channels: int = 0) -> None:
    """UserError, one line, for latents ``[F, C, h, w]`` that are not whole patches, or of other channels than the
    model's (0: not known here).
    """
    for history in histories:
        count, height, width = history.shape[1:]
        if height % patch or width % patch or channels not in (0, count):
            wanted = f"{channels} channels and sides" if channels else "sides"
            raise UserError(
                f"given frames have latents of {count} channels and {height}x{width}: this model takes {wanted} that "
                f"are multiples of model.patch_size = {patch}; encode them with its own codec, at multiples of "
                "data.size_multiple"
            )
