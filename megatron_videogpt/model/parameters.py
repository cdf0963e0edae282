"""Tables of parameters: released (Phi-3 style) key, our name, shape, how released and own layout relate, how tensor
parallelism shards it, how it starts, how it is optimized.

Initialisation, loading, saving and parity checks all read a network's table, and `check` counts parameters with it: no
PyTorch here, `tensors` does with tensors what the rules say.  The decoder's rules are here; those of what stands around
it belong to the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..condition.folder import text_width
from ..condition.options import ConditionConfig
from ..config.schema import ModelConfig

Shape = Callable[[ModelConfig, int], tuple[int, ...]]
"""`shape(model, channels)` of a released tensor; channels: latent channels of the codec."""
Condition = Callable[[ModelConfig], bool]
"""`when(model)`: whether a model of these options has a parameter."""
PREFIX = "prefix."
"""Start of the names of what makes a prefix of a condition (`model.prefix`)."""
WORDS_MULTIPLE = 16
"""Our tables of a vocabulary have a multiple of so many rows, whatever the layout, so that ranks can share them."""
BEFORE = ("embedding.", "position_embedding.", PREFIX)
"""Beginnings of our names of what stands before the layers, on the first pipeline stage."""


def padded_words(words: int) -> int:
    """Rows of our table of a vocabulary."""
    return -(-words // WORDS_MULTIPLE) * WORDS_MULTIPLE


def always(model: ModelConfig) -> bool:
    """Of every model."""
    return True


def width(model: ModelConfig, channels: int) -> tuple[int, ...]:
    """A vector of the hidden size."""
    return (model.hidden_size,)


@dataclass(frozen=True)
class Rule:
    """hf: released key; name: our key; shape: of the released tensor; form: plain, patch, frame_patch, hint, qkv, kv,
    gate_up, one or vocabulary; split: TP dimension (None: replicated); init: see `tensors.initial`; decay, rate:
    multiply `optimizer.weight_decay` (None: as `optimizer.decay` has it) and `optimizer.lr`; when: whether a model has
    it.

    ``{l}`` stands for the layer, counted over the whole model.
    """

    hf: str
    name: str
    shape: Shape = width
    form: str = "plain"
    split: int | None = None
    init: str = "normal"
    decay: float | None = None
    rate: float = 1.0
    when: Condition = always


def linear_rules(
    hf: str, name: str, shape: Shape, init: str, bias: str = "zeros", form: str = "plain"
) -> tuple[Rule, Rule]:
    """Of a linear layer with a bias, whose weight starts as `init`; the bias has the shape's first dimension."""
    return (
        Rule(f"{hf}.weight", f"{name}.weight", shape, form=form, init=init),
        Rule(f"{hf}.bias", f"{name}.bias", lambda model, channels: shape(model, channels)[:1], init=bias),
    )


def _query(model: ModelConfig) -> int:
    return model.num_attention_heads * model.head_dim


def _qkv(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return (_query(model) + 2 * model.kv_heads * model.head_dim, model.hidden_size)


def _qkv_bias(model: ModelConfig, channels: int) -> tuple[int, ...]:
    return _qkv(model, channels)[:1]


def _layer_norm(model: ModelConfig) -> bool:
    return model.norm == "layer"


def _biased(model: ModelConfig) -> bool:
    return model.biases


def _norm(hf: str, name: str) -> tuple[Rule, Rule]:
    """Of a norm; only LayerNorm has a bias."""
    return (
        Rule(f"{hf}.weight", f"{name}.weight", init="ones"),
        Rule(f"{hf}.bias", f"{name}.bias", init="zeros", when=_layer_norm),
    )


_LAYER, _OURS = "llm.layers.{l}", "decoder.layers.{l}"

_ATTENTION: tuple[Rule, ...] = (
    Rule(f"{_LAYER}.self_attn.qkv_proj.weight", f"{_OURS}.self_attention.linear_qkv.weight", _qkv, "qkv", split=0),
    Rule(
        f"{_LAYER}.self_attn.qkv_proj.bias",
        f"{_OURS}.self_attention.linear_qkv.bias",
        _qkv_bias,
        "qkv",
        split=0,
        init="zeros",
        when=_biased,
    ),
    Rule(
        f"{_LAYER}.self_attn.o_proj.weight",
        f"{_OURS}.self_attention.linear_proj.weight",
        lambda model, channels: (model.hidden_size, _query(model)),
        split=1,
    ),
    Rule(f"{_LAYER}.self_attn.o_proj.bias", f"{_OURS}.self_attention.linear_proj.bias", init="zeros", when=_biased),
)
"""Self-attention's two matrices.  A bias that is added behind a sum over tensor parallel ranks is whole on each."""

_FEED_FORWARD: tuple[Rule, ...] = (
    Rule(
        f"{_LAYER}.mlp.gate_up_proj.weight",
        f"{_OURS}.mlp.linear_fc1.weight",
        lambda model, channels: (2 * model.ffn_hidden_size, model.hidden_size),
        "gate_up",
        split=0,
        when=lambda model: model.gated,
    ),
    Rule(
        f"{_LAYER}.mlp.gate_up_proj.bias",
        f"{_OURS}.mlp.linear_fc1.bias",
        lambda model, channels: (2 * model.ffn_hidden_size,),
        "gate_up",
        split=0,
        init="zeros",
        when=lambda model: model.gated and model.biases,
    ),
    Rule(
        f"{_LAYER}.mlp.up_proj.weight",
        f"{_OURS}.mlp.linear_fc1.weight",
        lambda model, channels: (model.ffn_hidden_size, model.hidden_size),
        split=0,
        when=lambda model: not model.gated,
    ),
    Rule(
        f"{_LAYER}.mlp.up_proj.bias",
        f"{_OURS}.mlp.linear_fc1.bias",
        lambda model, channels: (model.ffn_hidden_size,),
        split=0,
        init="zeros",
        when=lambda model: not model.gated and model.biases,
    ),
    Rule(
        f"{_LAYER}.mlp.down_proj.weight",
        f"{_OURS}.mlp.linear_fc2.weight",
        lambda model, channels: (model.hidden_size, model.ffn_hidden_size),
        split=1,
    ),
    Rule(f"{_LAYER}.mlp.down_proj.bias", f"{_OURS}.mlp.linear_fc2.bias", init="zeros", when=_biased),
)

DECODER: tuple[Rule, ...] = (
    Rule(
        "llm.embed_positions.weight",
        "position_embedding.weight",
        lambda model, channels: (model.max_position_embeddings, model.hidden_size),
        init="zeros",
        decay=0.0,
        when=lambda model: model.positions == "learned",
    ),
    *_norm(f"{_LAYER}.input_layernorm", f"{_OURS}.input_layernorm"),
    *_ATTENTION,
    *_norm(f"{_LAYER}.post_attention_layernorm", f"{_OURS}.pre_mlp_layernorm"),
    *_FEED_FORWARD,
    *_norm("llm.norm", "decoder.final_layernorm"),
)
"""The table of learned positions, the decoder's layers and its final norm (reference README section 7)."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a network: its released key, its name with global layer numbers, and its rule."""

    hf: str
    name: str
    rule: Rule

    def shape(self, model: ModelConfig, channels: int) -> tuple[int, ...]:
        """Of the released tensor (of the three hint rows for the text table)."""
        return self.rule.shape(model, channels)


@dataclass(frozen=True)
class Table:
    """The parameters of a network; rules in the order in which a released folder has them.

    prefix: whether the model makes the prefix of a condition (`model.prefix`); else the objective's embedding does.
    """

    rules: tuple[Rule, ...]
    prefix: bool = True

    def of(self, model: ModelConfig) -> tuple[Rule, ...]:
        """The rules that a model of these options goes by."""
        return tuple(rule for rule in self.rules if rule.when(model))

    def entries(self, model: ModelConfig) -> Iterator[Parameter]:
        """All parameters of a network of these sizes, in the table's order."""
        for rule in self.of(model):
            for layer in range(model.num_layers) if "{l}" in rule.name else (0,):
                yield Parameter(rule.hf.replace("{l}", str(layer)), rule.name.replace("{l}", str(layer)), rule)


# The same object for the same condition: what is computed of a table is kept by it.
@lru_cache(maxsize=64)
def _with_prefix(table: Table, kind: str, count: int) -> Table:
    if kind == "class":
        rules = (
            Rule("class_embedding.weight", f"{PREFIX}table", lambda model, _: (count, model.hidden_size), decay=0.0),
        )
    else:
        rules = linear_rules(
            "text_projection", f"{PREFIX}linear", lambda model, _: (model.hidden_size, count), init="normal"
        )
    return Table((*table.rules, *rules))


def prefixed(table: Table, condition: ConditionConfig) -> Table:
    """The table of a network with what makes the prefix of a condition (`model.prefix`)."""
    if condition.kind not in ("class", "text") or not table.prefix:
        return table
    count = len(condition.classes) if condition.kind == "class" else text_width(condition)
    return _with_prefix(table, condition.kind, count)
