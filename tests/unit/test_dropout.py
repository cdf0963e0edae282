"""Dropout's mask: as documented, as likely as asked for, independent of where a token is computed; what cannot have one
is refused.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_videogpt.errors import UserError
from megatron_videogpt.model.dropout import dropout, kept
from megatron_videogpt.sequence.identity import identities
from tests import backbone, dense
from tests import dropout_numbers as numbers


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_the_mask_is_the_documented_one(rate: float) -> None:
    keys = (0, 1, 2**62 + 12345, 2**63 - 1)
    row = identities(keys, [3] * 4, 16)
    assert row.dtype == torch.int64 and not row[12:].any()
    for site in (0, 1, 65):
        found = kept(row, site, 50, rate)
        for number, key in enumerate(keys):
            expected = [numbers.kept(key, token, site, 50, rate) for token in range(3)]
            assert found[3 * number : 3 * number + 3].tolist() == expected


def test_channels_drop_as_often_as_asked_for_and_independently() -> None:
    rate, row = 0.2, identities([7, 8], [300, 300], 600)
    masks = torch.stack([kept(row, site, 1000, rate) for site in range(3)]).double()
    # Six standard deviations of a mean of so many independent draws.
    spread = (rate * (1 - rate)) ** 0.5
    assert abs(float(masks.mean()) - (1 - rate)) < 6 * spread / masks.numel() ** 0.5
    for axis in range(3):
        means = masks.mean(dim=[other for other in range(3) if other != axis])
        assert float((means - (1 - rate)).abs().max()) < 6 * spread / (masks.numel() / len(means)) ** 0.5
    centred = masks - (1 - rate)
    neighbours = {
        "channels": (centred[:, :, 1:], centred[:, :, :-1]),
        "tokens": (centred[:, 1:], centred[:, :-1]),
        "samples": (centred[:, :300], centred[:, 300:]),
        "places": (centred[1:], centred[:-1]),
    }
    for name, (one, other) in neighbours.items():
        assert abs(float((one * other).mean())) < 6 * spread**2 / one.numel() ** 0.5, name


def test_values_and_gradients_are_scaled_by_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.model import dropout as module

    row, x = identities([5], [9], 10), torch.ones(10, 1, 6, requires_grad=True)
    whole = dropout(x, row, 3, 0.5)
    whole.sum().backward()
    assert x.grad is not None and torch.equal(whole.detach(), x.grad)
    assert torch.equal(whole[:, 0] == 2.0, kept(row, 3, 6, 0.5)) and set(whole.flatten().tolist()) == {0.0, 2.0}
    monkeypatch.setattr(module, "AT_ONCE", 12)
    assert torch.equal(dropout(x, row, 3, 0.5), whole) and dropout(x, None, 3, 0.5) is x


@pytest.mark.usefixtures("processes")
def test_dropout_is_for_training_only_and_needs_to_know_the_tokens() -> None:
    from tests.parity.test_dense import build

    tiny = backbone.tiny_of("dropout")
    weights, outputs, _ = backbone.truth("dropout")
    model = build(tiny, weights)[0]
    samples = backbone.samples_of(tiny)[0]
    row = backbone.row_of(samples, tiny, 4)
    assert backbone.error(model(row).detach(), outputs[0]) < 1e-5
    with pytest.raises(UserError, match=r"^model\.dropout = 0\.3: this objective's rows do not say"):
        model(replace(row, identity=None))
    plain = [
        dense.forward(weights, replace(tiny, dropout=0.0), s.clips, s.noisy, s.clean, s.t).flatten() for s in samples
    ]
    evaluated = model.eval()(replace(row, identity=None)).detach()
    expected = build(replace(tiny, dropout=0.0), weights)[0](row).detach()
    assert torch.equal(evaluated, expected)
    assert float(evaluated.square().sum()) == pytest.approx(float(torch.cat(plain).square().sum()), rel=1e-5)


def test_a_sample_has_the_same_mask_wherever_it_is_packed() -> None:
    tiny = backbone.tiny_of("dropout")
    first, second = backbone.samples_of(tiny)[0]
    together, alone = backbone.row_of([first, second], tiny, 16), backbone.row_of([second], tiny, 1)
    assert together.identity is not None and alone.identity is not None
    start = len(backbone.row_of([first], tiny, 1).positions)
    count = len(alone.identity)
    assert torch.equal(together.identity[start : start + count], alone.identity)
    shards = [together.shard(rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([shard.identity for shard in shards]), together.identity)
    assert [len(shard.identity) for shard in shards] == [len(shard.positions) for shard in shards]
