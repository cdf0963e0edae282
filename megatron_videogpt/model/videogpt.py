"""The video GPT on megatron-core: an objective's embedding, the interval-masked decoder, the objective's head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from ..config.derived import scores_rows_only, stage_layers
from ..config.schema import Config, ModelConfig
from ..platforms import Platform
from ..sequence.row import Row
from .cache import CachedRow
from .init import mark_shards
from .layers import decoder_spec, transformer_config
from .parameters import Table
from .rope import angles, inverse_frequencies
from .self_attention import ScoredRows, scored_rows

End = Callable[[ModelConfig, int, torch.dtype, torch.device], nn.Module]
"""`end(model, channels, dtype, device)`: what stands before the decoder, or behind it."""


class Ends(NamedTuple):
    """What an objective puts around the decoder.

    embedding: packed row or shard -> hidden states ``[l, 1, D]``; head: hidden states, the row, and whether only the
    rows that it reads are there -> output.  table: of all parameters, the decoder's among them.
    """

    embedding: End
    head: End
    table: Table


class VideoGPT(MegatronModule):
    """One pipeline stage of the model, or one chunk of it in an interleaved pipeline.

    The first stage embeds a packed row, the last one computes what the objective scores.  channels: latent channels of
    the codec; backend: attention backend, resolved; ends: of the objective; chunk: which virtual stage of this pipeline
    rank.
    """

    def __init__(
        self, config: Config, channels: int, platform: Platform, backend: str, ends: Ends, chunk: int = 0
    ) -> None:
        layout = config.parallel
        stage = chunk * layout.pipeline + parallel_state.get_pipeline_model_parallel_rank()
        decoder_config = transformer_config(config, platform.name, backend, stage)
        super().__init__(config=decoder_config)
        self.table = ends.table
        pre_process, post_process = stage == 0, stage == layout.stages - 1
        # megatron-core reads this name from every chunk of an interleaved pipeline.
        self.vp_stage = chunk if layout.virtual_pipeline > 1 else None
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = pre_process, post_process
        self.scored_only = post_process and stage_layers(config)[stage] > 0 and scores_rows_only(layout)
        # megatron-core asks every model.
        self.share_embeddings_and_output_weights = False
        self.pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        self.register_buffer("frequencies", inverse_frequencies(config.model).to(platform.device), persistent=False)
        dtype = decoder_config.params_dtype
        if pre_process:
            self.embedding = ends.embedding(config.model, channels, dtype, platform.device)
        self.decoder = TransformerBlock(
            config=decoder_config,
            spec=decoder_spec(decoder_config, platform.name, self.scored_only, self.vp_stage),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=self.pg_collection,
            vp_stage=self.vp_stage,
        )
        if post_process:
            self.head = ends.head(config.model, channels, dtype, platform.device)
        mark_shards(self, config.model)

    def set_input_tensor(self, tensors: list[Tensor]) -> None:
        """Hidden states from the stage before (megatron-core's schedules call this)."""
        self.decoder.set_input_tensor(tensors[0] if isinstance(tensors, list) else tensors)

    def forward(self, row: Row, cached: CachedRow | None = None) -> Tensor:
        """This context parallel rank's shard of a packed row -> what the head gives for its scored tokens on the last
        stage, hidden states elsewhere.

        The shard's length must be a multiple of the tensor parallel size under sequence parallelism.  cached: where the
        whole row's keys and values are kept, when sampling; the intervals count in the rows of its buffers then.
        """
        hidden: Any = None
        if self.pre_process:
            hidden = self.embedding(row)
            if self.config.sequence_parallel:
                hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden)
        chosen: ScoredRows | None = None
        if self.scored_only and torch.is_grad_enabled():
            chosen = scored_rows(row.scored_rows, row.intervals)
        # megatron-core hands packed_seq_params to the attention of every layer, through recomputation too, and looks at
        # nothing in it itself.
        packed: Any = chosen if cached is None else cached
        turns = angles(row.positions, self.frequencies)
        hidden = self.decoder(hidden, attention_mask=row.intervals, rotary_pos_emb=turns, packed_seq_params=packed)
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            # Every rank computes the same head from here on, so the gradient is split, not summed.
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return self.head(hidden, row, scored=chosen is not None)
