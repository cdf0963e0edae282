"""An embedding of ids, our decoder, and a head that is split over the vocabulary."""

from __future__ import annotations

from megatron_videogpt.model.parameters import DECODER, Rule, Table

BITS = 6
"""Of an id: hyperplanes that cut the space of latents."""


def _table(model: object, channels: int) -> tuple[int, ...]:
    return (2**BITS, model.hidden_size)  # type: ignore[attr-defined]


TABLE = Table(
    (
        Rule("tok_emb.weight", "embedding.ids.weight", _table, decay=0.0),
        *DECODER,
        Rule("head.weight", "head.weight", _table, split=0),
    )
)
