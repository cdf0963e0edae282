"""Sequences of noisy and clean clips as one packed row (tests/golden/README.md, sections 2-6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.patches import grid_of, patchify, table_places
from ..sequence.identity import identities
from ..sequence.layout import (
    CLEAN,
    CLEAN_PATCH,
    DIFFUSION,
    IMG_END,
    IMG_START,
    NOISY,
    NOISY_PATCH,
    PREFIX,
    TIME,
    Layout,
    pack,
)
from ..sequence.row import Mask, Row, Stream


@dataclass(frozen=True)
class Sequence:
    """One sequence ready to be packed: its layout, the latents of its noisy and clean frames ``[F, C, h, w]`` as fed to
    the model, a timestep per noisy frame, the targets (None when sampling), whether they count in the loss, the
    condition that its prefix is of (`data.plans.Sample`), and the sample's key.
    frame, history: int64 ``[F]`` of the noisy frames, their place and how many clean frames theirs sees, by which the
    loss is told apart; None when sampling.
    """

    layout: Layout
    noisy: Tensor
    clean: Tensor
    timestep: Tensor
    target: Tensor | None = None
    scored: bool = True
    prefix: Tensor | None = None
    key: int = 0
    frame: Tensor | None = None
    history: Tensor | None = None


def assemble(
    sequences: list[Sequence], patch: int, table_side: int, multiple: int, no_prefix: Tensor | None = None
) -> Row:
    """Packs sequences into one row, padded to a multiple of `multiple` tokens.

    Streams: ``hint`` (id: 0 ``<|diffusion|>``, 1 ``<img>``, 2 ``</img>``), ``time`` (frame: number among the row's
    noisy frames), ``prefix`` (value: of its tokens; only of models with one), ``noisy`` and ``clean`` (patch:
    float32 ``[n, p*p*C]``, channel fastest; place: row and column in the position table, ``[n, 2]``; frame: as
    above, of noisy ones). Units are the noisy frames, with their timestep, and their frame and history where all
    sequences have them.

    no_prefix: what a condition without a token is, ``[0, ...]``; None for models without a prefix.
    """
    row = pack([item.layout for item in sequences], multiple)
    frames = torch.tensor([item.noisy.shape[0] for item in sequences])
    patches = torch.tensor([item.noisy.shape[-2] * item.noisy.shape[-1] // patch**2 for item in sequences])
    hints = [(0, NOISY, DIFFUSION), (1, CLEAN, IMG_START), (2, CLEAN, IMG_END)]
    hint_rows = [row.rows(kind, role) for _, kind, role in hints]
    places = {
        kind: [table_places(len(getattr(item, kind)), grid_of(item.noisy, patch), table_side) for item in sequences]
        for kind in ("noisy", "clean")
    }
    per_frame = patches.repeat_interleave(frames)
    counted = torch.tensor([float(item.scored) for item in sequences]).repeat_interleave(frames)
    noisy = torch.cat([patchify(item.noisy, patch) for item in sequences])
    targets = [patchify(item.target, patch) for item in sequences if item.target is not None]
    frame = torch.arange(len(per_frame))
    clean = torch.cat([patchify(item.clean, patch) for item in sequences])
    streams = {
        "hint": Stream(
            torch.cat(hint_rows),
            {"id": torch.cat([torch.full_like(rows, number) for rows, (number, _, _) in zip(hint_rows, hints)])},
        ),
        "time": Stream(row.rows(NOISY, TIME), {"frame": frame}),
        "noisy": Stream(
            row.rows(NOISY, NOISY_PATCH),
            {"patch": noisy, "place": torch.cat(places["noisy"]), "frame": frame.repeat_interleave(per_frame)},
        ),
        "clean": Stream(row.rows(CLEAN, CLEAN_PATCH), {"patch": clean, "place": torch.cat(places["clean"])}),
    }
    if no_prefix is not None:
        values = [item.prefix for item in sequences if item.prefix is not None]
        streams["prefix"] = Stream(row.rows(PREFIX), {"value": torch.cat([no_prefix, *values])})
    return Row(
        masks=(Mask(row.intervals),),
        positions=row.position,
        streams=streams,
        scored="noisy",
        target=torch.cat(targets) if targets else noisy[:0],
        weight=(counted / per_frame).repeat_interleave(per_frame),
        counted=counted,
        count=int(counted.sum()),
        units={"timestep": torch.cat([item.timestep for item in sequences]), **_numbers(sequences)},
        identity=identities([item.key for item in sequences], [len(item.layout) for item in sequences], len(row)),
    )


def _numbers(sequences: list[Sequence]) -> dict[str, Tensor]:
    """Of the noisy frames, where all sequences say."""
    found = {}
    for name in ("frame", "history"):
        values = [getattr(item, name) for item in sequences]
        if all(value is not None for value in values):
            found[name] = torch.cat(values)
    return found
