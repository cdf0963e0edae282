"""How many predicted tokens are right where a video moves: repeating the last frame has none of those right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenScore:
    """Shares in [0, 1] over the predicted tokens of some videos.

    changed: right among those that are not what the last given frame has at their place, NaN where there are none;
    moving: those among all; right: among all; repeated: right among all for a guess that repeats the last given frame.
    """

    changed: float
    moving: float
    right: float
    repeated: float


def score_tokens(predicted: Sequence[Tensor], true: Sequence[Tensor], given: int) -> TokenScore:
    """Compare what was drawn without help with what really follows.

    Args:
        predicted: per video the drawn ids, int64 ``[F, h, w]``.
        true: per video the ids of all frames, int64 ``[given + F, h, w]``, the given ones first.
        given: latent frames given, at least 1.
    """
    changed = changed_right = right = count = 0
    for drawn, video in zip(predicted, true, strict=True):
        if given < 1 or video.shape[0] != given + drawn.shape[0] or video.shape[1:] != drawn.shape[1:]:
            raise ValueError(
                f"ids of {list(drawn.shape)} predicted after {given} of a video of {list(video.shape)}: expected the "
                "same size, at least one given frame, and as many predicted ones as follow"
            )
        follows = video[given:]
        moves, hit = follows != video[given - 1], drawn == follows
        changed += int(moves.sum())
        changed_right += int((moves & hit).sum())
        right += int(hit.sum())
        count += follows.numel()
    share = changed_right / changed if changed else float("nan")
    return TokenScore(share, changed / count, right / count, 1 - changed / count)
