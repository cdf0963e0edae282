"""A small network with everything that layers may ask for (`tests/factorised_dense.py` says what it computes): masks
with an order and groups, side inputs of the row, whole and per token, and trained ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_videogpt.attention import attend
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config, ModelConfig
from megatron_videogpt.model.inputs import LayerInputs
from megatron_videogpt.model.layers import LayerKind, VideoGPTConfig, attention_spec
from megatron_videogpt.model.parameters import DECODER, Rule, Shape, Table, linear_rules
from megatron_videogpt.model.recompute import GatedMLP
from megatron_videogpt.model.videogpt import Ends, VideoGPT
from megatron_videogpt.platforms import activate
from megatron_videogpt.sequence.row import Context, Mask, Row, Stream, grouped_mask
from tests.factorised_dense import CHANNELS, MODEL, WORD, Sample, sides_of


def spatial_mask(samples: Sequence[Sample], length: int, hint: bool) -> Mask:
    """Tokens of a frame see each other."""
    sizes = [sample.cells for sample in samples for _ in range(sample.frames)]
    return _with_hint(_blocks(sizes, length, causal=False), sizes, None, hint)


def temporal_mask(samples: Sequence[Sample], length: int, hint: bool) -> Mask:
    """A token sees its cell in its own and earlier frames: in cell-major order, a causal block for each cell."""
    order, sizes, start = [], [], 0
    for sample in samples:
        count = sample.frames * sample.cells
        order.append((start + torch.arange(count)).view(sample.frames, sample.cells).T.flatten())
        sizes += [sample.frames] * sample.cells
        start += count
    by_token = torch.cat([*order, torch.arange(start, length)])
    intervals = torch.empty(length, 4, dtype=torch.int32)
    intervals[by_token] = _blocks(sizes, length, causal=True)
    return _with_hint(intervals, sizes, by_token, hint)


def _blocks(sizes: list[int], length: int, causal: bool) -> Tensor:
    rows, start = [], 0
    for size in sizes:
        rows += [[start, start + (n + 1 if causal else size), 0, 0] for n in range(size)]
        start += size
    return torch.tensor(rows + [[start, start + 1, 0, 0]] * (length - start), dtype=torch.int32)


def _with_hint(intervals: Tensor, sizes: list[int], order: Tensor | None, hint: bool) -> Mask:
    alike = next((n for n, size in enumerate(sizes) if size != sizes[0]), len(sizes))
    return grouped_mask(intervals, (alike, sizes[0]), order) if hint else Mask(intervals, order)


def word_intervals(sample: Sample, first: int) -> Tensor:
    """Of each token; its sample's words begin at `first`."""
    rows = []
    for frame in range(sample.frames):
        seen, last = frame % sample.words + 1, sample.words - 1
        more = [first + last, first + last + 1] if last >= seen else [0, 0]
        rows += [[first, first + seen, *more]] * sample.cells
    return torch.tensor(rows, dtype=torch.int32)


def row_of(
    samples: Sequence[Sample], multiple: int = 8, hint: bool = True, weights: dict[str, Tensor] | None = None
) -> Row:
    """A packed row.  weights: of the network that computes trained side inputs, where the row is to bring its results
    instead, for pipelines.
    """
    numbers = [sample.numbers for sample in samples]
    real = sum(sample.frames * sample.cells for sample in samples)
    length = -(-real // multiple) * multiple
    scored = torch.cat([(torch.arange(s.frames) >= s.prompt).repeat_interleave(s.cells) for s in samples])
    counts = torch.tensor([sample.cells for sample in samples for _ in range(sample.frames)])
    firsts = torch.tensor([0, *(sample.words for sample in samples)]).cumsum(0).tolist()
    words = torch.cat([word_intervals(sample, first) for sample, first in zip(samples, firsts)])
    padding = torch.tensor([[0, 1, 0, 0]] * (length - real), dtype=torch.int32).view(-1, 4)
    levels, text = (torch.cat([one[name] for one in numbers]) for name in ("level", "words"))
    whole = {"words": text} if weights is None else sides_of(weights, levels, text)
    context = {name: Context(value) for name, value in whole.items()}
    context["seen"] = Context(torch.cat([words, padding]), per_token=True)
    frame = torch.arange(len(counts)).repeat_interleave(counts)
    context["frame"] = Context(F.pad(frame, (0, length - real)), per_token=True)
    patch, target = (torch.cat([one[name].flatten(0, 1) for one in numbers]) for name in ("patch", "target"))
    units = len(counts)
    return Row(
        masks=(spatial_mask(samples, length, hint), temporal_mask(samples, length, hint)),
        positions=torch.cat([*(torch.arange(s.frames * s.cells) for s in samples), torch.zeros(length - real).long()]),
        streams={"all": Stream(torch.arange(real), {"patch": patch}), "scored": Stream(scored.nonzero().flatten())},
        scored="scored",
        target=target[scored],
        weight=torch.ones(int(scored.sum())),
        counted=torch.ones(units),
        count=units,
        units={"level": levels},
        context=context,
    )


class Embedding(nn.Module):
    """Patches to hidden states."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.patch = nn.Linear(channels, model.hidden_size, dtype=dtype, device=device)

    def forward(self, row: Row) -> Tensor:
        """``[l, 1, D]``."""
        values = self.patch(row.streams["all"]["patch"])
        hidden = torch.zeros(len(row.positions), values.shape[1], dtype=values.dtype)
        return hidden.index_put((row.streams["all"].rows,), values).unsqueeze(1)


class Head(nn.Module):
    """Hidden states to patches."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(model.hidden_size, channels, dtype=dtype, device=device)

    def forward(self, hidden: Tensor, row: Row, scored: bool = False) -> Tensor:
        """Of scored tokens ``[n, C]``."""
        return self.linear(hidden[:, 0] if scored else hidden[row.scored_rows, 0])


class Sides(nn.Module):
    """Modulation of each frame ``[F, 6D]`` and projected words ``[T, D]``."""

    def __init__(self, model: ModelConfig, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.level = nn.Linear(2, 6 * model.hidden_size, dtype=dtype, device=device)
        self.word = nn.Linear(WORD, model.hidden_size, dtype=dtype, device=device)

    def forward(self, row: Row) -> dict[str, Context]:
        """See the class."""
        weights = {f"sides.{name}": parameter for name, parameter in self.named_parameters()}
        found = sides_of(weights, row.units["level"], row.context["words"].value)
        return {name: Context(value) for name, value in found.items()}


class CrossAttention(nn.Module):
    """Tokens attend words."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        width, options = config.hidden_size, {"bias": False, "init_method": config.init_method, "skip_bias_add": False}
        self.backend, self.width = config.interval_backend, config.kv_channels
        self.query = ColumnParallelLinear(width, width, config=config, gather_output=False, **options)
        whole = copy.copy(config)
        whole.sequence_parallel = False
        self.key_value = ColumnParallelLinear(
            width,
            2 * width,
            config=whole,
            gather_output=False,
            disable_grad_reduce=config.sequence_parallel,
            **options,
        )
        self.out = RowParallelLinear(width, width, config=config, input_is_parallel=True, **options)

    def forward(self, hidden: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """Hidden ``[l, 1, D]`` (a part of them under sequence parallelism), text ``[T, D]``, intervals of all l tokens
        in it.
        """
        query = self.query(hidden)[0].unflatten(-1, (-1, self.width))[:, 0]
        key, value = self.key_value(text.unsqueeze(1))[0][:, 0].unflatten(-1, (-1, 2, self.width)).unbind(2)
        found = attend(self.backend, query, key, value, seen, self.width**-0.5)
        return self.out(found.flatten(1).unsqueeze(1))[0]


class FactorisedLayer(TransformerLayer):
    """Attention, cross-attention and feed-forward, the first and the last modulated."""

    def __init__(
        self, config: VideoGPTConfig, submodules: Any, layer_number: int = 1, last: bool = False, **rest: Any
    ) -> None:
        super().__init__(config, submodules, layer_number, **rest)
        self.last = last
        self.table = nn.Parameter(torch.empty(6, config.hidden_size))
        # Each rank modulates its own rows.
        self.table.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.words = CrossAttention(config)

    def forward(
        self, hidden_states: Tensor, context: Tensor | None, packed_seq_params: LayerInputs, **rest: Any
    ) -> tuple[Tensor, Any]:
        """megatron-core's arguments."""
        inputs, hidden = packed_seq_params, hidden_states
        frame, seen = inputs.side_here("frame", context), inputs.side("seen", context)
        steps = (inputs.side("modulation", context)[frame].unflatten(-1, (6, -1)) + self.table).unsqueeze(1)
        normed = self.input_layernorm(hidden) * (1 + steps[:, :, 0]) + steps[:, :, 1]
        out, rows = self.self_attention(normed, packed_seq_params=inputs, **rest)
        if rows is not None:
            hidden, steps, seen = (x.index_select(0, rows) for x in (hidden, steps, seen))
        hidden = hidden + steps[:, :, 2] * out
        hidden = hidden + self.words(self.pre_cross_attn_layernorm(hidden), inputs.side("text", context), seen)
        normed = self.pre_mlp_layernorm(hidden) * (1 + steps[:, :, 3]) + steps[:, :, 4]
        return hidden + steps[:, :, 5] * self.mlp(normed)[0], context


def _layer_spec(config: VideoGPTConfig, mask: int, last: bool) -> ModuleSpec:
    return ModuleSpec(
        module=FactorisedLayer,
        params={"last": last},
        submodules=TransformerLayerSubmodules(
            input_layernorm=config.norm,
            self_attention=attention_spec(config, mask, last),
            pre_cross_attn_layernorm=config.norm,
            pre_mlp_layernorm=config.norm,
            mlp=GatedMLP,
        ),
    )


def _rules() -> Iterator[Rule]:
    yield from linear_rules("", "embedding.patch", lambda model, channels: (model.hidden_size, channels), "normal")
    yield from DECODER
    layer = "decoder.layers.{l}."
    yield Rule("", f"{layer}pre_cross_attn_layernorm.weight", init="ones")
    yield Rule("", f"{layer}table", lambda model, channels: (6, model.hidden_size))
    for name, factor, split in (("query", 1, 0), ("key_value", 2, 0), ("out", 1, 1)):
        yield Rule("", f"{layer}words.{name}.weight", _squares(factor), split=split)
    yield from linear_rules("", "sides.level", lambda model, channels: (6 * model.hidden_size, 2), "normal")
    yield from linear_rules("", "sides.word", lambda model, channels: (model.hidden_size, WORD), "normal")
    yield from linear_rules("", "head.linear", lambda model, channels: (channels, model.hidden_size), "normal")


def _squares(factor: int) -> Shape:
    return lambda model, channels: (factor * model.hidden_size, model.hidden_size)


ENDS = Ends(
    Embedding,
    Head,
    Table(tuple(_rules())),
    layer=lambda model, number: LayerKind(number % 2, _layer_spec),
    sides=Sides,
)


def config_of(**parallel: Any) -> Config:
    """Configuration of the toy in a layout."""
    return config_from_dict({"model": MODEL, "parallel": parallel, "train": {"precision": "fp32"}})


def build(config: Config, backend: str, weights: dict[str, Tensor]) -> list[VideoGPT]:
    """The chunks of this rank, with these weights; without trained side inputs in a pipeline."""
    ends = ENDS if config.parallel.pipeline == 1 else ENDS._replace(sides=None)
    chunks = [
        VideoGPT(config, CHANNELS, activate("cpu"), backend, ends, chunk)
        for chunk in range(config.parallel.virtual_pipeline)
    ]
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in named(chunk):
                parameter.copy_(cut(name, weights[name], chunk))
    return chunks


def named(chunk: VideoGPT) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their name in the whole model."""
    for name, parameter in chunk.named_parameters():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(chunk.decoder.layers[int(parts[2])].layer_number - 1)
        yield ".".join(parts), parameter


def cut(name: str, full: Tensor, chunk: VideoGPT) -> Tensor:
    """What this tensor parallel rank has of a parameter, or of its gradient."""
    group = chunk.pg_collection.tp
    rank, size = group.rank(), group.size()
    if name.endswith("fc1.weight"):
        return torch.cat([half.chunk(size)[rank] for half in full.chunk(2)])
    if name.endswith(("qkv.weight", "query.weight", "key_value.weight")):
        return full.chunk(size)[rank]
    return full.chunk(size, dim=1)[rank] if name.endswith(("proj.weight", "out.weight", "fc2.weight")) else full
