"""What a run gets by its size: batch, learning rate, beta2, warm-up; and steps by its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...config.derived import typical_frame
from ...config.schema import Config
from ...plan.estimate import objective_work
from .options import BASE, Ladder
from .sizes import aspect_of, counts_of, feed_forward_of


@dataclass(frozen=True)
class Batch:
    """Of a step: samples, and their expected tokens."""

    samples: int
    tokens: float


def batch_of(config: Config, ladder: Ladder, size: float) -> Batch:
    """By the rule, rounded to `batch_multiple` samples, at least as many."""
    sample = objective_work(config).expected(typical_frame(config)).tokens
    if not ladder.batch_tokens:
        samples = config.train.global_batch_size
    else:
        wanted = scaled(ladder.batch_tokens, ladder.batch_exponent, size, ladder) / sample
        samples = max(1, round(wanted / ladder.batch_multiple)) * ladder.batch_multiple
    return Batch(samples, samples * sample)


def scaled(value: float, exponent: float, size: float, ladder: Ladder) -> float:
    """``value * (size / reference_size) ** exponent``."""
    return value * (size / ladder.reference_size) ** exponent


def beta2_of(config: Config, ladder: Ladder, tokens: float) -> float:
    """Of a step of so many tokens."""
    fitting = [beta for start, beta in ladder.beta2 if start <= tokens]
    return fitting[-1] if fitting else config.optimizer.betas[1]


def warmup_of(config: Config, ladder: Ladder, size: float, batch: Batch, shortest: int) -> int:
    """Steps; shortest: those of the size's shortest point."""
    if not ladder.warmup:
        return config.optimizer.warmup_steps
    most = math.floor(ladder.warmup_share * shortest)
    return max(1, min(round(ladder.warmup * size / batch.tokens), most))


def steps_of(tokens: float, batch: Batch) -> int:
    """As near as whole steps come."""
    return max(1, round(tokens / batch.tokens))


def trained(config: Config, ladder: Ladder, points: Sequence[int], shortest: int) -> Config:
    """A model of some size with all that a run of it needs but a folder.

    points: steps after which it has a point, ascending, the last one its end; shortest: of the size's points.
    """
    size = counts_of(config).of(ladder.parameters)
    batch, steps = batch_of(config, ladder, size), points[-1]
    optimizer = replace(
        config.optimizer,
        lr=_rounded(scaled(ladder.lr, ladder.lr_exponent, size, ladder)) if ladder.lr else config.optimizer.lr,
        betas=(config.optimizer.betas[0], beta2_of(config, ladder, batch.tokens)),
        warmup_steps=warmup_of(config, ladder, size, batch, shortest),
    )
    if ladder.schedule != BASE:
        several = ladder.schedule == "wsd_s" and len(points) > 1
        optimizer = replace(
            optimizer,
            schedule="wsd_s" if several else "wsd",
            lr_wsd_decay_ends=tuple(points) if several else (),
        )
    evaluation, checkpoint = config.eval, config.checkpoint
    if ladder.validations:
        evaluation = replace(evaluation, every=max(1, math.ceil(steps / ladder.validations)))
    if ladder.checkpoints:
        checkpoint = replace(checkpoint, every=max(1, math.ceil(steps / ladder.checkpoints)))
    train = replace(config.train, steps=steps, global_batch_size=batch.samples)
    return replace(config, optimizer=optimizer, eval=evaluation, checkpoint=checkpoint, train=train)


def _rounded(value: float) -> float:
    """Four digits: what a plan shows is what a run has."""
    return float(f"{value:.4g}")


def told(base: Config, ladder: Ladder) -> list[tuple[str, str]]:
    """Every rule in words, as a plan shows them: (what, rule)."""
    size = "N" if ladder.parameters == "all" else "N (decoder)"

    def power(value: float, exponent: float, unit: str = "") -> str:
        return f"{value:g}{unit} x ({size} / {ladder.reference_size:g})^{exponent:.3g}"

    learning = power(ladder.lr, ladder.lr_exponent) if ladder.lr else f"{base.optimizer.lr:g}, the recipe's"
    batch = f"{base.train.global_batch_size} samples, the recipe's"
    if ladder.batch_tokens:
        tokens = power(ladder.batch_tokens, ladder.batch_exponent, " tokens")
        batch = f"{tokens}, in multiples of {ladder.batch_multiple} samples"
    beta2 = ", ".join(f"{beta:g} from {start:g} tokens a step" for start, beta in ladder.beta2)
    warmup = f"{base.optimizer.warmup_steps} steps, the recipe's"
    if ladder.warmup:
        most = f"at most {ladder.warmup_share:.0%} of the size's shortest point"
        warmup = f"{ladder.warmup:g} tokens a parameter, {most}"
    return [
        ("width", f"whole heads of {ladder.head_dim or base.model.head_dim}, in multiples of {_heads(base, ladder)}"),
        ("depth", f"width / {aspect_of(base, ladder):.4g}"),
        ("feed-forward", f"{feed_forward_of(base, ladder):.3g} x width"),
        ("learning rate", learning),
        ("batch", batch),
        ("beta2", beta2 or f"{base.optimizer.betas[1]:g}, the recipe's"),
        ("warm-up", warmup),
        ("schedule", _schedule(base, ladder)),
        ("tokens", _tokens(ladder)),
        ("N counts", "all that is trained" if ladder.parameters == "all" else "the decoder without embedding and head"),
        *((f"of {entry['run']}", " ".join(entry["set"])) for entry in ladder.override),
    ]


def _heads(base: Config, ladder: Ladder) -> int:
    return math.lcm(ladder.heads_multiple, base.model.num_attention_heads // base.model.kv_heads)


def _schedule(base: Config, ladder: Ladder) -> str:
    name = base.optimizer.schedule if ladder.schedule == BASE else ladder.schedule
    if name not in ("wsd", "wsd_s"):
        return f"{name}, a run for each point"
    steps = base.optimizer.lr_wsd_decay_iters
    share = f"{steps} steps" if steps else f"{base.optimizer.lr_wsd_decay_share:.0%} of all steps"
    runs = "one run for all points of a size" if name == "wsd_s" else "a run for each point"
    return f"{name}, {runs}; {base.optimizer.lr_wsd_decay_style} decay over the last {share} to each end"


def _tokens(ladder: Ladder) -> str:
    multiple = f"multiple x {ladder.tokens_per_parameter:g} x N"
    return {
        ("sizes", "multiples"): multiple,
        ("sizes", "tokens"): "as given, the same for every size",
        ("sizes", "budgets"): "C / 6 N",
        ("budgets", "multiples"): f"C / 6 N, with N for tokens near {multiple}",
    }[ladder.axes]
