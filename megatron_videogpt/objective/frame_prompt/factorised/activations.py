"""What the factorised network keeps from its forward to its backward pass, in closed form.

Which tensors a layer keeps is written down here by hand (`model/factorised_layer.py`, `model/per_frame.py`,
`model/core_attention.py`, `attention/ranged.py`); tests compare it with what autograd saves, and with measured peaks
(tools/measure_memory.py).  The tables of `check` count a decoder's layers in its place.  No PyTorch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....config.derived import recomputed_layers, scores_rows_only
from ....config.schema import Config
from ...work import Work
from .variant import Variant


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank.  kept: at the end of the forward pass; working: what the backward pass adds at its peak."""

    kept: float
    working: float


@dataclass(frozen=True)
class LayerBytes:
    """Tensors of one layer on one rank, for a whole packed row, in bytes.

    stream: one tensor as wide as the residual stream, of all tokens; tail: the same behind attention in time, of the
    scored tokens alone in the last layer; before, behind: how many streams and tails are kept; attention: queries,
    keys, values, outputs and log-sum-exps of all four attentions, of which `text` is that of the text, behind attention
    in time; small: vectors of frames, numbers of norms, keys and values of the text; inner: one tensor inside of the
    feed-forward, which keeps two; gathered: what sequence parallelism gathers; backward: attention's sums and copies of
    gradients; weight: the gradient of the largest weight.
    """

    stream: float
    tail: float
    before: float
    behind: float
    attention: float
    text: float
    small: float
    inner: float
    gathered: float
    backward: float
    weight: float

    def kept(self, policy: str) -> float:
        """By the policy that the layer recomputes by; the norms of these layers are kept under all but ``full``."""
        if policy == "full":
            return self.stream
        around = self.before * self.stream + self.behind * self.tail + self.attention + self.small
        return around + self._kept_inner(policy)

    def working(self, policy: str) -> float:
        """What the backward pass of one such layer adds at most, while the layers before it still keep theirs."""
        feed_forward = {"none": 1, "selective": 3, "mlp": 3, "full": 1}[policy] * self.inner
        # Attention in time goes back when what stands behind it is gone.
        gone = self.behind * self.tail + self.text + self._kept_inner("none" if policy == "full" else policy)
        again = self.kept("none") - self.stream if policy == "full" else 0.0
        most = max(feed_forward + 2 * self.tail, self.backward - gone + 2 * self.stream)
        return again + most + 2 * self.gathered + self.weight

    def _kept_inner(self, policy: str) -> float:
        return {"none": 2, "selective": 1, "mlp": 0}[policy] * self.inner


def layer_bytes(
    config: Config,
    variant: Variant,
    work: Work[float],
    units: tuple[float, float],
    first: bool = False,
    last: bool = False,
) -> LayerBytes:
    """Of a row of this work, context parallel shards not yet cut.  units: frames and text tokens of the row; first,
    last: of the model, or neither.
    """
    model, layout = config.model, config.parallel
    value = _value(config)
    pieces = variant.pieces(first)
    frames, words = units
    share = work.scored / work.tokens if last and scores_rows_only(layout) else 1.0
    shard = work.tokens / layout.context
    local = shard / (layout.tensor if layout.sequence else 1)
    stream, heads = value * local * model.hidden_size, value * shard * model.hidden_size / layout.tensor
    sums = 4 * shard * model.num_attention_heads / layout.tensor
    tail = share * stream
    # Queries, keys, values and output; the output is kept on both sides of an exchange, and of a change of order.
    plain = (4 + (layout.context > 1)) * heads + sums
    in_time = 5 * heads + sums if share == 1.0 else (2 + 2 * share) * heads + share * sums
    text = share * (2 * heads + sums) * pieces.text
    exchange = 0.0 if layout.context == 1 else 6 * heads
    # Float32 sums, a call's gradients and that of the output; of bfloat16, whose short calls go back in float32, copies
    # of five inputs too.
    copies = 7 * heads if value == 4 else (2 * 11 + 1) * heads
    return LayerBytes(
        stream=stream,
        tail=tail,
        # Residual, norm, modulated norm and output of attention in space; residual and output of that to the prompt;
        # residual that attention in time gets, with the map before it once more, one channel wider.
        before=4 + 2 * pieces.prompt + 1 + (1 + 1 / model.hidden_size) * pieces.mask_channel,
        # Output of attention in time; residual that the text's gets; residual, norm, modulated norm, and the output.
        behind=5 + pieces.text,
        attention=plain * (1 + pieces.prompt) + in_time + text,
        text=text,
        # Six modulating vectors of each frame, of which the scales once more, plus 1; two numbers of a token's norms.
        small=8 * value * frames * model.hidden_size
        + 8 * (1 + share) * local
        + 2 * value * words * model.hidden_size / layout.tensor * pieces.text,
        inner=share * value * shard * model.ffn_hidden_size / layout.tensor,
        gathered=value * shard * model.hidden_size if layout.sequence else 0.0,
        backward=copies + exchange,
        weight=value * model.ffn_hidden_size * model.hidden_size / layout.tensor,
    )


def activations(config: Config, variant: Variant, work: Work[float], units: tuple[float, float]) -> Activations:
    """Of a rank that trains rows of this work; `parallel.recompute` must be resolved.  units: see `layer_bytes`."""
    count, layout = config.model.num_layers, config.parallel
    (recomputed,) = recomputed_layers(layout, (count,))
    rest = {"full": "none", "mlp": "selective"}.get(layout.recompute, layout.recompute)
    # Of each scored token what the norm gets and gives, and what modulation gives.
    scored = _value(config) * config.model.hidden_size * work.scored / layout.context
    kept, peak = 0.0, 0.0
    for number in range(count):
        layer = layer_bytes(config, variant, work, units, number == 0, number == count - 1)
        policy = layout.recompute if number < recomputed else rest
        kept += layer.kept(policy)
        # A layer goes back when those behind it have gone.
        peak = max(peak, kept + layer.working(policy))
    kept += 3 * scored
    return Activations(kept, max(peak, kept + 3 * scored) - kept)


def _value(config: Config) -> int:
    return 4 if config.train.precision == "fp32" else 2
