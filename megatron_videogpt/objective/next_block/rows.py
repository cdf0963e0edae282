"""Videos of ids as one packed row."""

from __future__ import annotations

import torch

from ...sequence.identity import identities
from ...sequence.intervals import padding_intervals, shift
from ...sequence.row import Mask, Row, Stream
from .sequence import Sequence


def assemble(sequences: list[Sequence], multiple: int, sampling: bool = False) -> Row:
    """Packs sequences into one row, padded to a multiple of `multiple` tokens; they do not see each other.

    Streams: ``token`` (id), ``video`` (frame: latent frame of what is predicted), the scored one, and ``dropped``
    (place: of a token in a condition that is replaced).  sampling: without targets, so that the head gives logits.
    """
    lengths = [len(item) for item in sequences]
    total = sum(lengths)
    padding = -total % multiple
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    masks, rows, dropped = [], [], [torch.zeros(0, dtype=torch.int64)]
    for start, item in zip(starts, sequences):
        masks.append(shift(torch.nn.functional.pad(item.ends[:, None], (1, 2)), start))
        rows.append(torch.arange(start + item.first, start + len(item)))
        dropped += [torch.arange(start, start + item.first)] * item.dropped
    weight = torch.tensor([float(item.scored) for item in sequences]).repeat_interleave(torch.tensor([*map(len, rows)]))
    targets, frames = torch.cat([item.targets for item in sequences]), torch.cat([item.frames for item in sequences])
    places = torch.cat([dropped[0], *(torch.arange(len(part)) for part in dropped[1:])])
    return Row(
        masks=(Mask(torch.cat([*masks, padding_intervals(total, padding)])),),
        positions=torch.cat([*map(torch.arange, lengths), torch.zeros(padding, dtype=torch.int64)]),
        streams={
            "token": Stream(torch.arange(total), {"id": torch.cat([item.ids for item in sequences])}),
            "video": Stream(torch.cat(rows), {} if sampling else {"frame": frames}),
            "dropped": Stream(torch.cat(dropped), {"place": places}),
        },
        scored="video",
        target=targets[:0] if sampling else targets,
        weight=weight,
        counted=weight,
        count=int(weight.sum()),
        identity=identities([item.key for item in sequences], lengths, total + padding),
    )
