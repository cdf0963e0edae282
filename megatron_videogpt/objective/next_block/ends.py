"""Ids in; out, where rows have targets, what they came to, and where they have none, this rank's part of the logits."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor, nn

from ...config.schema import Config, ModelConfig
from ...model.parameters import padded_words
from ...model.videogpt import Ends
from ...sequence.row import Row
from .loss import Part, Scored, cross_entropy
from .parameters import table_of
from .vocabulary import Vocabulary, vocabulary_of


def part_of(vocabulary: Vocabulary) -> tuple[int, Part]:
    """(rows of this rank's tables, which words they are: the last rows of the last rank are of no word)."""
    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    each = padded_words(vocabulary.size) // ranks
    group = parallel_state.get_tensor_model_parallel_group() if ranks > 1 else None
    return each, Part(rank * each, min(each, vocabulary.size - rank * each), group)


class IdEmbedding(nn.Module):
    """Ids to hidden states, through a table of which each tensor parallel rank has some of the rows."""

    def __init__(
        self,
        model: ModelConfig,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        vocabulary: Vocabulary,
        prefix: int,
    ) -> None:
        super().__init__()
        each, self.part = part_of(vocabulary)
        self.table = nn.Parameter(torch.empty(each, model.hidden_size, dtype=dtype, device=device))
        self.unconditional: nn.Parameter | None = None
        if prefix:
            self.unconditional = nn.Parameter(torch.empty(prefix, model.hidden_size, dtype=dtype, device=device))

    def forward(self, row: Row) -> Tensor:
        """A packed row, or a shard of one -> hidden states ``[l, 1, D]``; padding rows are zero."""
        token, dropped = row.streams["token"], row.streams["dropped"]
        hidden = torch.zeros(len(row.positions), self.table.shape[1], dtype=self.table.dtype, device=self.table.device)
        hidden = hidden.index_put((token.rows,), self._words(token["id"]))
        if self.unconditional is not None:
            # A row without any goes the same way, so that every micro-batch gives the parameter a gradient.
            hidden = hidden.index_put((dropped.rows,), self.unconditional[dropped["place"]])
        return hidden.unsqueeze(1)

    def _words(self, ids: Tensor) -> Tensor:
        if self.part.group is None:
            return F.embedding(ids, self.table)
        local = ids - self.part.first
        here = (local >= 0) & (local < self.part.words)
        values = F.embedding(local.clamp(0, self.part.words - 1), self.table).masked_fill(~here[:, None], 0.0)
        return tensor_parallel.reduce_from_tensor_model_parallel_region(values)


class VocabularyHead(nn.Module):
    """A linear map without bias, of which each tensor parallel rank has some of the outputs."""

    def __init__(
        self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device, vocabulary: Vocabulary
    ) -> None:
        super().__init__()
        each, self.part = part_of(vocabulary)
        self.weight = nn.Parameter(torch.empty(each, model.hidden_size, dtype=dtype, device=device))

    def forward(self, hidden: Tensor, row: Row, scored: bool = False) -> Tensor | Scored:
        """Hidden states of all rows, or of the scored ones, ``[., 1, D]`` -> `Scored`, or of a row without targets
        float32 ``[n, V/TP]``, logits as `whole_logits` takes them.
        """
        rows = hidden.squeeze(1) if scored else hidden.squeeze(1).index_select(0, row.scored_rows)
        if row.streams[row.scored].values.keys() >= {"frame"}:
            return cross_entropy(rows, self.weight, row.target, row.weight, self.part)
        return F.linear(rows, self.weight).float()


def whole_logits(output: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Logits of all tensor parallel ranks, of the words alone, float32 ``[n, V]`` on each."""
    return tensor_parallel.gather_from_tensor_model_parallel_region(output)[:, : vocabulary.size]


def ends_of(vocabulary: Vocabulary, prefix: int = 0) -> Ends:
    """What stands around a decoder of this vocabulary; prefix: see `parameters.table_of`."""
    embedding = partial(IdEmbedding, vocabulary=vocabulary, prefix=prefix)
    head = partial(VocabularyHead, vocabulary=vocabulary)
    return Ends(embedding, head, table_of(vocabulary, prefix), split_head=True)


def ends(config: Config) -> Ends:
    """See `objective.build`."""
    return ends_of(vocabulary_of(config), config.condition.most_tokens)
