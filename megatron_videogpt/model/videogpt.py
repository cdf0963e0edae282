"""The video GPT on megatron-core: an objective's embedding, the interval-masked decoder, the objective's head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor, nn

from ..config.derived import scores_rows_only, stage_layers
from ..config.schema import Config, ModelConfig
from ..errors import UserError
from ..platforms import Platform
from ..sequence.row import Context, Row
from .cache import Cached, cached_by
from .dropout import EMBEDDING, dropout
from .init import mark_shards, named
from .inputs import LayerInputs, ScoredRows, join_trained, ordered, scored_rows, with_plans_sent
from .layers import LayerKind, decoder_spec, transformer_config
from .parameters import Table, prefixed
from .prefix import build_prefix, place_prefix
from .recompute import FeedForward, hand_identity
from .rope import angles, inverse_frequencies

End = Callable[[ModelConfig, int, torch.dtype, torch.device], nn.Module]
"""`end(model, channels, dtype, device)`: what stands before the decoder, or behind it."""


def _plain(model: ModelConfig, number: int) -> LayerKind:
    return LayerKind()


class Ends(NamedTuple):
    """What an objective puts around the decoder, and what it puts in.

    embedding: packed row or shard -> hidden states ``[l, 1, D]``; head: hidden states, the row, and whether only the
    rows that it reads are there -> output; table: of all parameters, the decoder's among them.

    split_head: whether each tensor parallel rank computes a part of the output (of a vocabulary, say), so that what its
    input gets as gradients are parts of a sum.

    layer: `layer(model, number)` -> what that layer is, counted from 0 over the whole model.

    sides: the row -> trained side inputs of layers, ``dict[str, Context]``, beside those of the row itself
    (`model.inputs.LayerInputs` has both).  Not for pipelines, whose stages would each need it: UserError.  Every rank
    runs it, with the same result for what is whole.  Its gradients come out right if each layer gives its own share:
    under context parallelism that of its tokens, which reduction over data (and context) parallel ranks adds up; under
    sequence parallelism that of its rows or heads, which the mark `sequence_parallel` of its parameters does.  So a
    column parallel map of a whole side input must then not add up the gradient of its input (`disable_grad_reduce`).

    head_sides: names of those, whole ones, that the head gets, as ``sides``, and layers do not.

    final_norm: whether a norm with weights stands between the layers and the head.
    """

    embedding: End
    head: End
    table: Table
    split_head: bool = False
    layer: Callable[[ModelConfig, int], LayerKind] = _plain
    sides: End | None = None
    head_sides: tuple[str, ...] = ()
    final_norm: bool = True


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
        if ends.sides is not None and layout.pipeline > 1:
            raise UserError(
                f"parallel.pipeline = {layout.pipeline}: this objective's network computes side inputs of its layers, "
                "which pipeline stages do not pass on; it needs parallel.pipeline=1"
            )
        stage = chunk * layout.pipeline + parallel_state.get_pipeline_model_parallel_rank()
        decoder_config = transformer_config(config, platform.name, backend, stage)
        super().__init__(config=decoder_config)
        self.sizes, self.table, self.split_head = config.model, prefixed(ends.table, config.condition), ends.split_head
        pre_process, post_process = stage == 0, stage == layout.stages - 1
        # megatron-core reads this name from every chunk of an interleaved pipeline.
        self.vp_stage = chunk if layout.virtual_pipeline > 1 else None
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = pre_process, post_process
        count, first = stage_layers(config)[stage], decoder_config.first_layer
        kinds = [ends.layer(config.model, number) for number in range(first, first + count)]
        self.scored_only = post_process and count > 0 and kinds[-1].scores_rows and scores_rows_only(layout)
        self.last_mask = kinds[-1].mask if kinds else 0
        # megatron-core asks every model.
        self.share_embeddings_and_output_weights = False
        self.pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        rotary = config.model.positions == "rope"
        frequencies = inverse_frequencies(config.model).to(platform.device) if rotary else None
        self.register_buffer("frequencies", frequencies, persistent=False)
        dtype = decoder_config.params_dtype
        self.prefix = None
        if pre_process:
            self.embedding = ends.embedding(config.model, channels, dtype, platform.device)
            self.prefix = build_prefix(config, dtype, platform.device) if ends.table.prefix else None
        self.position_embedding: nn.Embedding | None = None
        if pre_process and config.model.positions == "learned":
            rows, width = config.model.max_position_embeddings, config.model.hidden_size
            self.position_embedding = nn.Embedding(rows, width, dtype=dtype, device=platform.device)
        self.decoder = TransformerBlock(
            config=decoder_config,
            spec=decoder_spec(decoder_config, kinds, self.scored_only, ends.final_norm),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=self.pg_collection,
            vp_stage=self.vp_stage,
        )
        for layer in self.decoder.layers if config.model.dropout else ():
            if isinstance(layer.mlp, FeedForward):
                last = self.scored_only and layer is self.decoder.layers[-1]
                layer.register_forward_pre_hook(partial(hand_identity, scored_only=last), with_kwargs=True)
        if post_process:
            self.head = ends.head(config.model, channels, dtype, platform.device)
        self.head_sides = ends.head_sides
        self.sides = None if ends.sides is None else ends.sides(config.model, channels, dtype, platform.device)
        for parameter in self.sides.parameters() if self.sides is not None else ():
            # Layers see a part of the tokens, or of the heads, and so give a part of the gradient.
            parameter.sequence_parallel = layout.sequence  # type: ignore[attr-defined]
        mark_shards(self, config.model)

    def set_input_tensor(self, tensors: list[Tensor]) -> None:
        """Hidden states from the stage before (megatron-core's schedules call this)."""
        self.decoder.set_input_tensor(tensors[0] if isinstance(tensors, list) else tensors)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """megatron-core's description for checkpoints.

        What an objective puts around the decoder are plain modules, which megatron-core takes to be whole on every
        rank: the table says which of their parameters are not.
        """
        described: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.config.tensor_model_parallel_size == 1:
            return described
        for entry, parameter in named(self, self.sizes):
            if entry.rule.split is not None and not entry.name.startswith("decoder."):
                described[prefix + entry.name] = make_tp_sharded_tensor_for_checkpoint(
                    parameter, prefix + entry.name, tp_axis=entry.rule.split, prepend_offsets=sharded_offsets
                )
        return described

    def forward(self, row: Row, cached: Cached | None = None) -> Tensor:
        """This context parallel rank's shard of a packed row -> what the head gives for its scored tokens on the last
        stage, hidden states elsewhere.

        The shard's length must be a multiple of the tensor parallel size under sequence parallelism.  cached: where the
        whole row's keys and values are kept, when sampling; the masks count in the rows of its buffers then.
        """
        hidden: Any = None
        if self.pre_process:
            hidden = self.embedding(row)
            if self.prefix is not None:
                hidden = place_prefix(self.prefix, hidden, row)
            if self.position_embedding is not None:
                hidden = hidden + self.position_embedding(row.positions).unsqueeze(1)
            hidden = dropout(hidden, self._identity(row), EMBEDDING, self.sizes.dropout)
            if self.config.sequence_parallel:
                hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden)
        sides = {} if self.sides is None else self.sides(row)
        for_head = {name: self._for_head(sides.pop(name).value) for name in self.head_sides}
        inputs, context = self._inputs(row, sides, cached)
        hidden = self.decoder(
            hidden,
            # megatron-core's recomputation asks for a tensor; layers find their mask in their inputs.
            attention_mask=row.intervals,
            context=context,
            rotary_pos_emb=None if self.frequencies is None else angles(row.positions, self.frequencies),
            packed_seq_params=inputs,
        )
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            # Where every rank computes the same head from here on, the gradient is split, not summed.
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, self.split_head)
        elif self.split_head:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        return self.head(hidden, row, scored=inputs.scored is not None, **({"sides": for_head} if for_head else {}))

    def _for_head(self, side: Tensor) -> Tensor:
        """A whole trained side input for the head, which every tensor parallel rank computes alike: under sequence
        parallelism the ranks' gradients of `sides` are added up, so that each gives its share of this one.
        """
        if not self.config.sequence_parallel or not side.requires_grad:
            return side
        size = self.pg_collection.tp.size()
        shared = side.view_as(side)
        shared.register_hook(lambda gradient: gradient / size)
        return shared

    def _inputs(self, row: Row, sides: dict[str, Context], cached: Cached | None) -> tuple[LayerInputs, Tensor | None]:
        """What layers find beside hidden states: their inputs, and the trained side inputs in one tensor."""
        context, slots = join_trained(sides)
        assert not slots.keys() & row.context.keys()
        chosen: ScoredRows | None = None
        if self.scored_only and torch.is_grad_enabled() and cached is None:
            chosen = scored_rows(row.scored_rows, row.masks[self.last_mask].intervals)
        kept = [cached_by(cached, number) for number in range(len(row.masks))]
        in_cache = [found is not None and found.places is not None for found in kept]
        chunks = self.config.virtual_pipeline_model_parallel_size or 1
        more = self.vp_stage is not None and self.vp_stage + 1 < chunks
        fixed = with_plans_sent(row.context, chosen is not None, more)
        masks = tuple(
            ordered(mask, kept, chosen is not None and number == self.last_mask, more)
            for number, (mask, kept) in enumerate(zip(row.masks, in_cache))
        )
        group = self.pg_collection.tp
        part, parts = (group.rank(), group.size()) if self.config.sequence_parallel else (0, 1)
        identity = self._identity(row)
        identity = None if identity is None else identity.chunk(parts)[part]
        return LayerInputs(masks, chosen, cached, fixed, slots, part, parts, identity), context

    def _identity(self, row: Row) -> Tensor | None:
        """What dropout goes by, for the whole shard; None where nothing is dropped."""
        if not self.training or not self.sizes.dropout:
            return None
        if row.identity is None:
            raise UserError(
                f"model.dropout = {self.sizes.dropout:g}: this objective's rows do not say which token is which "
                "(Row.identity), by which masks are drawn; use model.dropout=0"
            )
        return row.identity
