"""The megatron-core model as what the sampler of ids calls, with or without a cache of keys and values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from torch import Tensor

from ...config.derived import require_positions
from ...config.schema import Config
from ...model.cache import DTYPES, CachedRow, KeyValueCache
from ...model.forward import forward_row
from ...model.parameters import padded_words
from ...sequence.intervals import padding_intervals
from ...sequence.row import Mask, Row, Stream
from .ends import whole_logits
from .sequence import ends
from .vocabulary import HYBRID, Vocabulary


class Place(NamedTuple):
    """Of one video in a row, or in a cache.  prefix: tokens of its condition; dropped: whether other embeddings stand
    for them; most: tokens that its input will ever have.
    """

    prefix: int
    dropped: bool
    most: int


class _Part(NamedTuple):
    """Tokens of a video that go through the model.  start: where the video begins in the buffers or the row; first:
    number of the first token; ids: int64 ``[n]``; read: how many of the last ones' logits are wanted.
    """

    place: Place
    start: int
    first: int
    ids: Tensor
    read: int


class Network:
    """`Model` of the sampler of ids (`hub/next_block/sampling_nextblock.py`), for videos of these places.

    With a cache each token goes through the model once.  Guided, every video is there twice, the second time with its
    condition dropped.  Every rank of a model parallel group must use it alike.
    """

    def __init__(
        self, chunks: list[Any], config: Config, device: torch.device, vocabulary: Vocabulary, places: list[Place]
    ) -> None:
        self.chunks, self.config, self.device, self.vocabulary = chunks, config, device, vocabulary
        without = [place._replace(dropped=True) for place in places]
        self.places, self.videos = [*places, *without], len(places)
        options = config.sample
        dtype = DTYPES.get(options.cache_dtype)
        self.cache: KeyValueCache | None = None
        if options.cache:
            same = dtype is chunks[0].config.params_dtype
            self.cache = KeyValueCache(None if same else dtype, options.cache_offload)
        self.fed = [0] * len(self.places)

    def forget(self) -> None:
        """All videos begin anew."""
        self.fed = [0] * len(self.places)

    def logits(self, inputs: dict[int, Tensor], rows: dict[int, int], guided: bool) -> dict[int, list[Tensor]]:
        """See `Model.logits`."""
        numbers = [*inputs, *(video + self.videos for video in inputs if guided)]
        starts, kept = self._starts(numbers, inputs, guided)
        parts = []
        for number, start in zip(numbers, starts):
            ids, first = inputs[number % self.videos], self.fed[number] if self.cache is not None else 0
            parts.append(_Part(self.places[number], start, first, ids[first:], rows[number % self.videos]))
            self.fed[number] = len(ids)
        found = self._through(parts, kept).split([part.read for part in parts])
        return {video: [found[place + part] for part in ((0, len(inputs)) if guided else (0,))]
                for place, video in enumerate(inputs)}  # fmt: skip

    def _starts(self, numbers: list[int], inputs: dict[int, Tensor], guided: bool) -> tuple[list[int], int]:
        """Where each of these videos begins, and how many rows all have: in the cache, those that are done too."""
        if self.cache is None:
            lengths = [len(inputs[number % self.videos]) for number in numbers]
            return [sum(lengths[:place]) for place in range(len(lengths))], sum(lengths)
        most = [place.most for place in self.places[: None if guided else self.videos]]
        return [sum(most[:number]) for number in numbers], sum(most)

    def _through(self, parts: list[_Part], kept: int) -> Tensor:
        """Logits ``[n, V]`` that the parts want, in their order.  kept: rows of the cache that videos have."""
        count = sum(len(part.ids) for part in parts)
        padding = -count % self.config.parallel.row_multiple
        cached = None
        if self.cache is not None:
            self.cache.arrange(kept, self.config.parallel.row_multiple - 1, [])
            spans = [torch.arange(len(part.ids)) + part.start + part.first for part in parts]
            everywhere = torch.cat([*spans, torch.arange(kept, kept + padding)]).to(self.device)
            cached = CachedRow(self.cache, everywhere, kept, kept + padding, count)
        row = self._row(parts, padding, kept if cached is not None else count).to(self.device)
        width = padded_words(self.vocabulary.size) // parallel_state.get_tensor_model_parallel_world_size()
        return whole_logits(forward_row(self.chunks, row, width, cached), self.vocabulary)

    def _row(self, parts: list[_Part], padding: int, behind: int) -> Row:
        """The parts, and padding whose keys stand from `behind` on."""
        hybrid, masks, positions, read, dropped, replaced = self.vocabulary.layout == HYBRID, [], [], [], [], []
        row = 0
        for place, start, first, ids, wanted in parts:
            count = first + len(ids)
            seen = ends(count, self.vocabulary.block, place.prefix, hybrid)[first:, None] + start
            masks.append(torch.nn.functional.pad(seen, (1, 2)))
            masks[-1][:, 0] = start
            positions.append(torch.arange(first, count))
            read.append(torch.arange(row + len(ids) - wanted, row + len(ids)))
            replaced.append(torch.arange(first, max(first, place.prefix) if place.dropped else first))
            dropped.append(replaced[-1] + row - first)
            row += len(ids)
        require_positions(self.config, max(len(part.ids) + part.first for part in parts), "the history and the clip")
        return Row(
            masks=(Mask(torch.cat([*masks, padding_intervals(behind, padding)]).to(torch.int32)),),
            positions=torch.cat([*positions, torch.zeros(padding).long()]),
            streams={
                "token": Stream(torch.arange(row), {"id": torch.cat([part.ids for part in parts])}),
                "video": Stream(torch.cat(read)),
                "dropped": Stream(torch.cat(dropped), {"place": torch.cat(replaced)}),
            },
            scored="video",
            target=torch.zeros(0).long(),
            weight=torch.ones(sum(map(len, read))),
            counted=torch.zeros(0),
            count=0,
        )
