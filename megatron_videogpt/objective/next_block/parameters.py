"""The parameters of next block prediction, by the names of the published checkpoints.  No PyTorch here: see
`model/parameters.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ...config.schema import Config, ModelConfig
from ...model.parameters import DECODER, Rule, Table
from .vocabulary import Vocabulary, vocabulary_of

START = "transformer."
NAMES = {
    "llm.embed_positions.weight": "pos_emb",
    "llm.layers.{l}.input_layernorm.": "blocks.{l}.ln1.",
    "llm.layers.{l}.post_attention_layernorm.": "blocks.{l}.ln2.",
    "llm.layers.{l}.self_attn.qkv_proj.": "blocks.{l}.attn.qkv.",
    "llm.layers.{l}.self_attn.o_proj.": "blocks.{l}.attn.proj.",
    "llm.layers.{l}.mlp.gate_up_proj.": "blocks.{l}.mlp.gate_up.",
    "llm.layers.{l}.mlp.up_proj.": "blocks.{l}.mlp.0.",
    "llm.layers.{l}.mlp.down_proj.": "blocks.{l}.mlp.2.",
    "llm.norm.": "ln_f.",
}
"""Beginning of a key of the decoder's table -> of the published one; nothing published has a gated feed-forward."""
JOINT, APART = ".attn.qkv.", (".attn.query.", ".attn.key.", ".attn.value.")
"""Three published tensors, one after another, are one of our table's."""


def published(hf: str) -> tuple[str, ...]:
    """Keys of the published tensors whose rows, one after another, are this one of the table."""
    return tuple(hf.replace(JOINT, part) for part in APART) if JOINT in hf else (hf,)


def _renamed(rule: Rule) -> Rule:
    begin = next(begin for begin in NAMES if rule.hf.startswith(begin))
    rule = replace(rule, hf=START + NAMES[begin] + rule.hf.removeprefix(begin))
    if rule.name != "position_embedding.weight":
        return rule
    # The published table has a first axis of one entry.
    return replace(
        rule, shape=lambda model, channels: (1, model.max_position_embeddings, model.hidden_size), form="one"
    )


# The same object for the same sizes: what is computed of a table is kept by it.
@lru_cache(maxsize=64)
def table_of(vocabulary: Vocabulary, prefix: int = 0) -> Table:
    """The parameters around and in the decoder.  prefix: tokens of a condition, whose embeddings are replaced by others
    where it is dropped: in the published code a buffer that stays as it starts.
    """

    def words(model: ModelConfig, channels: int) -> tuple[int, ...]:
        return (vocabulary.size, model.hidden_size)

    dropped = Rule(
        f"{START}uncond_embedding",
        "embedding.unconditional",
        lambda model, channels: (prefix, model.hidden_size),
        init="unit",
        decay=0.0,
    )
    return Table(
        (
            Rule(f"{START}tok_emb.weight", "embedding.table", words, form="vocabulary", split=0, decay=0.0),
            *([dropped] if prefix else []),
            *map(_renamed, DECODER),
            Rule(f"{START}head.weight", "head.weight", words, form="vocabulary", split=0),
        ),
        prefix=False,
    )


def table(config: Config) -> Table:
    """See `objective.build`."""
    return table_of(vocabulary_of(config), config.condition.most_tokens)
