"""Classes, texts and given frames against the dense implementation in tests/dense.py, which knows a prefix by its rule
alone; and what a prefix must not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.noise import normal
from megatron_videogpt.sequence.row import Mask, Row
from tests import dense

from .test_dense import build

pytestmark = pytest.mark.usefixtures("processes")

WIDTH = 12
CONDITIONS = {
    "class": ConditionConfig(kind="class", classes=("a", "b", "c")),
    "text": ConditionConfig(kind="text", width=WIDTH),
}
LONG = dense.Tiny(groups=2, long_factor=tuple(1 + 0.3 * i for i in range(8)), longest=131072)


def weights_of(tiny: dense.Tiny, kind: str) -> dict[str, Tensor]:
    weights = dense.random_weights(tiny, seed=5)
    if kind == "class":
        weights["class_embedding.weight"] = normal(1, "table", (3, tiny.width))
    if kind == "text":
        weights["text_projection.weight"] = normal(1, "weight", (tiny.width, WIDTH)) / 3
        weights["text_projection.bias"] = normal(1, "bias", (tiny.width,)) / 5
    return {key: value.requires_grad_() for key, value in weights.items()}


def prefix_of(weights: dict[str, Tensor], condition: Tensor) -> Tensor:
    """Tokens of a condition, by the twin."""
    if condition.is_floating_point():
        return F.linear(condition, weights["text_projection.weight"], weights["text_projection.bias"])
    return weights["class_embedding.weight"][condition]


def samples_of(kind: str) -> list[Sample]:
    """With and without given frames, conditions that are dropped, and one that was never there."""
    facts = [((2, 3, 1), 2, False), ((1, 1), 0, False), ((1, 2), 1, True), ((3,), 0, True), ((1, 1, 1), 0, False)]
    samples = []
    for number, (clips, given, dropped) in enumerate(facts):
        condition = torch.tensor([number % 3]) if kind == "class" else normal(number, "text", (1 + number, WIDTH))
        mean = normal(number, "latents", (sum(clips), 4, 4, 6))
        sample = Sample(number, "", mean, None, clips, condition=condition, given=given, dropped=dropped)
        samples.append(replace(sample, condition=None) if number == 4 else sample)
    return samples


def twin(weights: dict[str, Tensor], tiny: dense.Tiny, samples: list[Sample], objective: Any) -> list[Tensor]:
    """Per sample what the dense network predicts of the frames that are not given.

    A given clip is one whose noisy copy nobody else sees, and nobody asks for.
    """
    predictions = []
    for sample in samples:
        fed = objective.sequence(sample)
        given = 0 if sample.dropped else sample.given
        blocks = [*([given] if given else []), *(sample.clips[1:] if sample.given else sample.clips)]
        noisy = torch.cat([torch.zeros(given, *fed.noisy.shape[1:]), fed.noisy])
        t = torch.cat([torch.full((given,), 0.5), fed.timestep])
        told = None if sample.dropped or sample.condition is None else prefix_of(weights, sample.condition)
        predictions.append(dense.forward(weights, tiny, blocks, noisy, fed.clean, t, prefix=told)[given:])
    return predictions


@pytest.mark.parametrize(("kind", "tiny", "recompute"), [("class", LONG, "full"), ("text", dense.Tiny(), "none")])
def test_forward_and_gradients(kind: str, tiny: dense.Tiny, recompute: str) -> None:
    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.model.patches import unpatchify
    from megatron_videogpt.objective.build import build_objective

    weights = weights_of(tiny, kind)
    model, config = build(tiny, weights, recompute, "ranged", CONDITIONS[kind])
    objective, samples = build_objective(config), samples_of(kind)
    row = objective.prepare(samples, 8)
    output = model(row)
    total = objective.score(output, row).total
    total.backward()
    predictions = twin(weights, tiny, samples, objective)
    targets = [objective.sequence(sample).target for sample in samples]
    loss = sum((ours - target).square().mean(dim=(1, 2, 3)).sum() for ours, target in zip(predictions, targets))
    loss.backward()
    assert float(total) == pytest.approx(float(loss), rel=1e-5)
    assert row.count == sum(map(len, predictions)) == 4 + 2 + 2 + 3 + 3
    for part, prediction in zip(output.split([6 * len(item) for item in predictions]), predictions):
        ours = unpatchify(part.detach(), len(prediction), (2, 3), 2)
        assert float((ours - prediction).abs().max() / prediction.abs().max()) < 1e-5
    gradients = gather_released(model, config.model, lambda parameter: parameter.grad)
    assert gradients.keys() == weights.keys()
    for key, ours in gradients.items():
        theirs = weights[key].grad
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5, key


def hidden_from_the_video(row: Row, prefix: int) -> Row:
    """A row of one sequence whose prefix only sees itself, and nobody else sees it."""
    intervals = row.intervals.clone()
    intervals[prefix:, 0] = torch.where(intervals[prefix:, 1] > prefix, prefix, 0)
    intervals[prefix:, 1] = torch.where(intervals[prefix:, 1] > prefix, intervals[prefix:, 1], 0)
    return replace(row, masks=(Mask(intervals),))


@pytest.mark.parametrize("tiny", [dense.Tiny(), LONG], ids=["RoPE", "long RoPE"])
def test_a_prefix_that_is_hidden_changes_nothing(tiny: dense.Tiny) -> None:
    """Its tokens move the positions of all others alike, and no relative position."""
    from megatron_videogpt.objective.build import build_objective

    model, config = build(tiny, weights_of(tiny, "text"), backend="ranged", condition=CONDITIONS["text"])
    objective = build_objective(config)
    sample = Sample(
        3, "", normal(3, "latents", (6, 4, 4, 6)), None, (2, 3, 1), condition=normal(3, "text", (40, WIDTH))
    )
    told, untold = objective.prepare([sample], 1), objective.prepare([replace(sample, condition=None)], 1)
    with torch.no_grad():
        seen, hidden, without = model(told), model(hidden_from_the_video(told, 40)), model(untold)
    assert told.length == untold.length + 40
    scale = float(without.abs().max())
    assert float((hidden - without).abs().max()) / scale < 1e-5
    assert float((seen - without).abs().max()) / scale > 1e-2


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_dropped_condition_gives_the_unconditional_loss_bit_for_bit(kind: str) -> None:
    from megatron_videogpt.objective.build import build_objective

    tiny, weights = dense.Tiny(), weights_of(dense.Tiny(), kind)
    found = []
    samples = [replace(sample, dropped=True, given=0) for sample in samples_of(kind)]
    for condition in (CONDITIONS[kind], ConditionConfig()):
        model, config = build(tiny, weights, backend="ranged", condition=condition)
        objective = build_objective(config)
        plain = samples if condition.kind != "none" else [replace(s, condition=None, dropped=False) for s in samples]
        row = objective.prepare(plain, 8)
        score = objective.score(model(row), row)
        score.total.backward()
        found.append((score, {name: p.grad for name, p in model.named_parameters()}, row))
    (dropped, ours, row), (without, theirs, bare) = found
    assert row.length == bare.length and len(row.streams["prefix"]) == 0 and "prefix" not in bare.streams
    assert torch.equal(dropped.total, without.total) and torch.equal(dropped.sums, without.sums)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    # They take part, so that ranks whose samples all dropped it reduce the same gradients.
    extra = ours.keys() - theirs.keys()
    assert {name.partition(".")[0] for name in extra} == {"prefix"} and not any(ours[name].any() for name in extra)
