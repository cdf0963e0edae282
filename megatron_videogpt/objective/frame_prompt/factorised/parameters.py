"""The parameters of the factorised network, by the names of the published checkpoints, and how they start (reference
README section 2).  No PyTorch here: see `model/parameters.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ....config.schema import ModelConfig
from ....model.parameters import Rule, Shape, Table, linear_rules
from .variant import Variant

WAVES = 256
"""Numbers that a timestep enters its network as."""
_THEIRS, _OURS = "blocks.{l}.", "decoder.layers.{l}."


def _square(rows: int, columns: int = 1) -> Shape:
    return lambda model, channels: (rows * model.hidden_size, columns * model.hidden_size)


def _split_linear(
    hf: str, name: str, shape: Shape, split: int, form: str = "plain", init: str = "xavier"
) -> tuple[Rule, Rule]:
    """A linear map of which each tensor parallel rank has some of the outputs (split 0) or inputs (1), whose bias is
    added behind the sum and so whole.
    """
    weight, bias = linear_rules(hf, name, shape, init, form=form)
    part = 0 if split == 0 else None
    of_bias = form if split == 0 else "plain"
    return (
        Rule(weight.hf, weight.name, shape, form, split, init),
        Rule(bias.hf, bias.name, bias.shape, of_bias, part, bias.init),
    )


def _attention(hf: str, name: str, start: str = "xavier") -> Iterator[Rule]:
    """start: of the output's map; "zeros" of attention that is silent at first."""
    yield from _split_linear(f"{_THEIRS}{hf}.qkv", f"{_OURS}{name}.linear_qkv", _square(3), 0, "qkv")
    yield from _split_linear(f"{_THEIRS}{hf}.proj", f"{_OURS}{name}.linear_proj", _square(1), 1, init=start)


def _text_attention() -> Iterator[Rule]:
    hf, name = f"{_THEIRS}cross_attn.", f"{_OURS}text_attention."
    yield from _split_linear(f"{hf}q_linear", f"{name}query", _square(1), 0)
    yield from _split_linear(f"{hf}kv_linear", f"{name}key_value", _square(2), 0, "kv")
    yield from _split_linear(f"{hf}proj", f"{name}proj", _square(1), 1, init="zeros")


def _feed_forward() -> Iterator[Rule]:
    up: Shape = lambda model, channels: (model.ffn_hidden_size, model.hidden_size)  # noqa: E731
    down: Shape = lambda model, channels: (model.hidden_size, model.ffn_hidden_size)  # noqa: E731
    yield from _split_linear(f"{_THEIRS}mlp.fc1", f"{_OURS}mlp.linear_fc1", up, 0)
    yield from _split_linear(f"{_THEIRS}mlp.fc2", f"{_OURS}mlp.linear_fc2", down, 1)


def _sides(variant: Variant) -> Iterator[Rule]:
    """The timestep's network, which modulates layers and head, and the text's."""
    for number, shape in ((0, lambda model, channels: (model.hidden_size, WAVES)), (2, _square(1))):
        yield from linear_rules(f"t_embedder.mlp.{number}", f"sides.timestep.mlp.{number}", shape, "normal")
    yield from linear_rules("t_block.1", "sides.block", _square(6), "normal")
    if not variant.text_width:
        return
    # A buffer in the published code: it is never trained.
    yield Rule(
        "y_embedder.y_embedding",
        "sides.no_text",
        lambda model, channels: (variant.text_tokens, variant.text_width),
        init="unit",
        decay=0.0,
        rate=0.0,
    )
    of_text: Shape = lambda model, channels: (model.hidden_size, variant.text_width)  # noqa: E731
    for number, shape in ((1, of_text), (2, _square(1))):
        yield from linear_rules(f"y_embedder.y_proj.fc{number}", f"sides.text.fc{number}", shape, "normal")


def _tables(hf: str, name: str, rows: int) -> Rule:
    return Rule(hf, name, lambda model, channels: (rows, model.hidden_size), init="unit")


def _rules(variant: Variant) -> Iterator[Rule]:
    def patch(model: ModelConfig, channels: int) -> tuple[int, ...]:
        return (model.hidden_size, channels, 1, model.patch_size, model.patch_size)

    def out(model: ModelConfig, channels: int) -> tuple[int, ...]:
        return (2 * channels * model.patch_size**2, model.hidden_size)

    yield from linear_rules("x_embedder.proj", "embedding.patch", patch, "xavier", form="frame_patch")
    yield from _sides(variant)
    yield _tables(f"{_THEIRS}scale_shift_table", f"{_OURS}table", 6)
    yield from _attention("attn", "self_attention")
    yield from _feed_forward()
    yield from _attention("attn_temp", "temporal_attention", "zeros")
    if variant.enhance != "none":
        yield from _attention("attn_cf", "prompt_attention", "zeros")
    if variant.text_width:
        yield from _text_attention()
    if variant.mask_channel:
        merge: Shape = lambda model, channels: (model.hidden_size, model.hidden_size + 1)  # noqa: E731
        yield from linear_rules("blocks.0.attn_temp_pre_merge", "sides.merge", merge, "identity")
    yield _tables("final_layer.scale_shift_table", "head.table", 2)
    yield from linear_rules("final_layer.linear", "head.linear", out, "zeros")


# The same object for the same network: what is computed of a table is kept by it.
@lru_cache(maxsize=64)
def table_of(variant: Variant) -> Table:
    """All parameters; conditions come as side inputs, not as a prefix."""
    return Table(tuple(_rules(variant)), prefix=False)
