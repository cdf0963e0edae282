"""The networks of tokenizer training: each discriminator learns after the tokenizer, from what it makes by then."""

from __future__ import annotations

from dataclasses import replace

from ...config.schema import Config, OptimizerConfig
from ..base import Part
from .networks import (
    build_adversary,
    build_features,
    build_tokenizer,
    start_adversary,
    start_features,
    start_tokenizer,
)
from .options import LPIPS

TOKENIZER, DISCRIMINATOR, AVERAGE, FEATURES = "tokenizer", "discriminator", "average", "features"


def parts(config: Config) -> tuple[Part, ...]:
    """See `objective.build`."""
    options = config.objective
    found = [Part(TOKENIZER, build_tokenizer(), start=start_tokenizer(config))]
    if options.adversarial:
        rate = options.discriminator_lr or config.optimizer.lr

        def own(run: OptimizerConfig) -> OptimizerConfig:
            # Before it starts its gradients are zeros: nothing else may move it, nor may their norms be a measure.
            low = min(run.min_lr, rate)
            return replace(run, lr=rate, min_lr=low, weight_decay=0.0, spike_factor=0.0)

        found.append(Part(DISCRIMINATOR, build_adversary(), start=start_adversary(config), optimizer=own))
    if options.decay:
        average = {"trained": False, "average_of": TOKENIZER, "decay": options.decay}
        found.append(Part(AVERAGE, build_tokenizer(), start=start_tokenizer(config), **average))
    if options.feature == LPIPS and options.feature_weight:
        found.append(Part(FEATURES, build_features(), trained=False, start=start_features(config)))
    return tuple(found)
