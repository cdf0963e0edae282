"""A run's checkpoint, opened as what a Hugging Face folder in the released layout holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.saved import find_checkpoint
from ..config.schema import Config
from ..errors import UserError
from ..model.parameters import Parameter
from ..model.patches import position_axis
from .folder import CARRIED_STARTS
from .sharded import Weights
from .side import NAME, Side
from .table import EMBED_TOKENS, POSITION_TABLE, check_network, parameters
from .tensor_files import Entry

SCRATCH_HINT_IDS, SCRATCH_VOCABULARY = (1, 2, 3), 4
"""The text table of a model that never had one: a placeholder of zeros, then the three hint rows."""

NO_TOKENIZER = (*CARRIED_STARTS, "generation_config.json", "extra.json")
"""Starts of the names of files that travel along and are not the tokenizer's."""


class Export:
    """What a checkpoint gives, opened; nothing is written yet.

    average: the moving average of the weights; dtype: what floating-point tensors are cast to, None keeps what they
    have. Raises ValueError in one line when there is no such checkpoint.
    """

    def __init__(
        self, run: Path, step: int | None = None, average: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        saved = find_checkpoint(run, step)
        self.run, self.path, self.average, self.wanted = run, saved.path, average, dtype
        self.config: Config = saved.config
        check_network(run, self.config)
        self.codec_fingerprint: str = saved.state["codec"]
        if average and not saved.state["ema"]:
            raise UserError(
                f"{self.path} has no moving average of the weights; train with optimizer.ema_decay, or take "
                "--weights trained"
            )
        self.weights = Weights(self.path, self.config, average)
        self.side = Side(run) if (run / NAME).is_dir() else None
        # Weights that were trained on are kept as exactly as they were trained; others go back to what they came as.
        self.untouched = bool(saved.state.get("weights_only"))
        self.hint_ids = self.side.hint_ids if self.side else SCRATCH_HINT_IDS

    @property
    def vocabulary(self) -> int:
        """Rows of the text table."""
        return self.side.places[EMBED_TOKENS].shape[0] if self.side else SCRATCH_VOCABULARY

    def entries(self) -> list[Entry]:
        """All tensors of the folder, each read when it is written."""
        found = [self._position_table()]
        for entry in parameters(self.config.model, self.config.condition):
            found.append(self._text_table(entry) if entry.hf == EMBED_TOKENS else self._parameter(entry))
        side = self.side
        if side is not None:
            found += [self._carried(key) for key in side.places if key not in (EMBED_TOKENS, POSITION_TABLE)]
        return found

    def _dtype(self, entry: Parameter) -> torch.dtype:
        if self.wanted is not None:
            return self.wanted
        return self.side.dtype(entry.hf) if self.side and self.untouched else self.weights.dtype(entry)

    def _parameter(self, entry: Parameter) -> Entry:
        dtype = self._dtype(entry)
        return Entry(entry.hf, self.weights.shape(entry), dtype, lambda: self.weights.tensor(entry).to(dtype))

    def _text_table(self, entry: Parameter) -> Entry:
        width, side = self.config.model.hidden_size, self.side
        dtype = self._dtype(entry)
        if side is not None and self.wanted is None and not self.untouched:
            dtype = torch.promote_types(dtype, side.dtype(EMBED_TOKENS))

        def read() -> Tensor:
            table = side.tensor(EMBED_TOKENS).to(dtype) if side else torch.zeros(SCRATCH_VOCABULARY, width, dtype=dtype)
            table[list(self.hint_ids)] = self.weights.tensor(entry).to(dtype)
            return table

        return Entry(EMBED_TOKENS, (self.vocabulary, width), dtype, read)

    def _position_table(self) -> Entry:
        """A constant, which no choice of dtype concerns."""
        side, size, width = self.side, self.config.model.position_table_size, self.config.model.hidden_size
        if side is not None and POSITION_TABLE in side.places:
            place = side.places[POSITION_TABLE]
            return Entry(POSITION_TABLE, place.shape, place.dtype, lambda: side.tensor(POSITION_TABLE))

        def read() -> Tensor:
            axis = position_axis(size, width)
            # The column's half comes first.
            return torch.cat([axis[None].expand(size, -1, -1), axis[:, None].expand(-1, size, -1)], dim=-1).reshape(
                1, size * size, width
            )

        return Entry(POSITION_TABLE, (1, size * size, width), torch.float32, read)

    def _carried(self, key: str) -> Entry:
        assert self.side is not None
        side, place = self.side, self.side.places[key]
        dtype = self.wanted if self.wanted is not None and place.dtype.is_floating_point else place.dtype
        return Entry(key, place.shape, dtype, lambda: side.tensor(key).to(dtype))
