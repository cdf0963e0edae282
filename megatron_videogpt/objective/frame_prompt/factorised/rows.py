"""Videos of a prompt and noisy frames, with their texts, as one packed row for the factorised network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import UserError
from ....model.factorised import FRAME, IS_PROMPT, PLACE, SEEN
from ....model.patches import grid_of, patchify
from ....sequence.identity import identities
from ....sequence.row import Context, Row, Stream
from .masks import Extent, masks_of, text_intervals
from .variant import Variant

WORDS, ABSENT = "words", "absent"
"""Side inputs of the row: text tokens of all videos ``[n, E]``, and for each its place in the table that stands for "no
text" int64 ``[n]``, or -1.
"""


@dataclass(frozen=True)
class Text:
    """tokens ``[N, E]``, the text encoder's output; mask: bool ``[N]``, which of them are seen, None for all; dropped:
    whether "no text" stands in their place, with the same mask.
    """

    tokens: Tensor
    mask: Tensor | None = None
    dropped: bool = False


@dataclass(frozen=True)
class Video:
    """One video of T frames, ready to be packed.

    latents ``[T, C, h, w]`` as the network gets them, the first `prompt` frames given; timestep: int64 ``[T]``, from 0
    to 999; places: int64 ``[T]``, entries of the temporal table (`variant.temporal_places`); text: of networks that
    have one.
    noise, start: of the noisy frames ``[T - prompt, C, h, w]``, what was added to which data; None when sampling.
    scored, key: of `data.plans.Sample`.
    """

    latents: Tensor
    prompt: int
    timestep: Tensor
    places: Tensor
    text: Text | None = None
    noise: Tensor | None = None
    start: Tensor | None = None
    scored: bool = True
    key: int = 0

    def extent(self, patch: int) -> Extent:
        """Frames, prompt, and patches of a frame."""
        rows, columns = grid_of(self.latents, patch)
        return Extent(len(self.latents), self.prompt, rows * columns)


def assemble(videos: Sequence[Video], multiple: int, variant: Variant, patch: int) -> Row:
    """Packs videos into one row, padded to a multiple of `multiple` tokens; they do not see each other.

    Streams: ``patch`` (value ``[n, p*p*C]``, place: row and column ``[n, 2]``, frame: its number in the row) and
    ``noisy``, the scored one (frame; in training, value and start: of what the network gets and of the data).  Units
    are the frames, with their timestep, place behind the prompt (frame) and the prompt's length (history), which are
    counted where they are noisy; target: the noise, patch by patch.
    Side inputs: `model.factorised`'s, and `WORDS` and `ABSENT` of networks with text.

    Raises UserError for a text that is missing, empty, too long or of another width, or that the network has no use
    for.
    """
    extents = [video.extent(patch) for video in videos]
    real = sum(extent.tokens for extent in extents)
    length = -(-real // multiple) * multiple
    frames = torch.tensor([extent.patches for extent in extents for _ in range(extent.frames)])
    frame = torch.arange(len(frames)).repeat_interleave(frames)
    noisy = torch.cat([torch.arange(len(video.latents)) >= video.prompt for video in videos])
    counted = torch.cat([torch.full((len(video.latents),), float(video.scored)) for video in videos]) * noisy
    rows = noisy[frame].nonzero().flatten()
    value = torch.cat([patchify(video.latents, patch) for video in videos])
    scored, target = {"frame": frame[rows]}, value[:0]
    if all(video.noise is not None for video in videos):
        target = _patches([video.noise for video in videos], patch)
        scored |= {"value": value[rows], "start": _patches([video.start for video in videos], patch)}
    identity = identities([video.key for video in videos], [extent.tokens for extent in extents], length)
    return Row(
        masks=masks_of(extents, length, variant),
        positions=torch.zeros(length, dtype=torch.int64),
        streams={
            "patch": Stream(torch.arange(real), {"value": value, "place": _places(videos, patch), "frame": frame}),
            "noisy": Stream(rows, scored),
        },
        scored="noisy",
        target=target,
        weight=(counted / frames)[frame[rows]],
        counted=counted,
        count=int(counted.sum()),
        units={
            "timestep": torch.cat([video.timestep for video in videos]),
            "frame": torch.cat([torch.arange(len(video.latents)) - video.prompt for video in videos]),
            "history": torch.tensor([video.prompt for video in videos for _ in video.latents]),
        },
        context={
            FRAME: Context(F.pad(frame, (0, length - real)), per_token=True),
            PLACE: Context(torch.cat([video.places for video in videos])),
            IS_PROMPT: Context((~noisy).float()),
            **_text_context(videos, extents, length, variant),
        },
        identity=identity,
    )


def _patches(latents: Sequence[Tensor | None], patch: int) -> Tensor:
    return torch.cat([patchify(part, patch) for part in latents if part is not None])


def _places(videos: Sequence[Video], patch: int) -> Tensor:
    """Row and column of every patch, from the corner ``[n, 2]``."""
    found = []
    for video in videos:
        rows, columns = grid_of(video.latents, patch)
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        found.append(grid.repeat(len(video.latents), 1))
    return torch.cat(found)


def _text_context(
    videos: Sequence[Video], extents: Sequence[Extent], length: int, variant: Variant
) -> dict[str, Context]:
    texts = [video.text for video in videos if video.text is not None]
    if not variant.text_width:
        if texts:
            raise UserError("a text was given, and the model has no attention to a text; leave it out")
        return {}
    if len(texts) < len(videos):
        raise UserError("a video without a text, and the model attends one; give each video a text, or a dropped one")
    words, absent = [], []
    for text in texts:
        count, width = text.tokens.shape
        if width != variant.text_width or count > variant.text_tokens:
            raise UserError(
                f"a text of {count} tokens of width {width}; the model takes at most {variant.text_tokens} of width "
                f"{variant.text_width}"
            )
        seen = torch.arange(count) if text.mask is None else text.mask.bool().nonzero().flatten()
        if not len(seen):
            raise UserError("a text of which no token is seen; give it at least one, such as the end of an empty text")
        words.append(torch.zeros_like(text.tokens[seen]) if text.dropped else text.tokens[seen])
        absent.append(seen if text.dropped else torch.full_like(seen, -1))
    return {
        WORDS: Context(torch.cat(words)),
        ABSENT: Context(torch.cat(absent)),
        SEEN: Context(text_intervals(extents, [len(part) for part in words], length), per_token=True),
    }
