"""An objective on ids of another distribution: block-causal masks, a head split over the vocabulary, a schedule of its
own, a frozen network; against a dense network and torch's AdamW, in every layout, over resumes in others.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.model.tensors import initial
from megatron_videogpt.objective.noise import normal
from tests import dense
from tests.loading import loader_of
from tests.outside.outside_ids.parameters import BITS, TABLE
from tests.outside.outside_ids.schedule import nbp_cosine
from tests.outside.outside_ids.sequence import ends, ids_and_targets
from tests.outside.site import TINY, lines, make, train

STEPS, BATCH, BLOCK = 4, 4, 4
DATA = (f"train.global_batch_size={BATCH}", "train.micro_batch_size=2", "model.num_layers=2")
COMMON = (*DATA, "objective.name=outside_ids", "optimizer.eps=1e-3", "optimizer.lr=0.02", "checkpoint.every=2")
OWN, CONSTANT = "optimizer.schedule=nbp_cosine", "optimizer.schedule=constant"
LAYOUTS = {
    "TP2": ("parallel.tensor=2",),
    "TP2+SP": ("parallel.tensor=2", "parallel.sequence=true"),
    "PP2": ("parallel.pipeline=2",),
    "CP2": ("parallel.context=2",),
    "DP2": (),
}


def test_ids_targets_and_masks_are_the_recorded_ones(reference: Path) -> None:
    cases = json.loads((reference / "nbp" / "masks_targets.json").read_text())["cases"]
    tensors = load_file(str(reference / "nbp" / "masks_targets.safetensors"))
    for case in cases:
        held = {name: tensors[entry["key"]] for name, entry in case["tensors"].items()}
        hybrid, block, prefix = case["mode"] == "hybrid", case["block"], case["prefix"]
        seen = ends(case["seq_len"], block, prefix, hybrid)
        assert torch.equal(seen, held["ends"]), case["name"]
        if "attention_mask" in held:
            assert torch.equal(torch.arange(len(seen)) < seen[:, None], held["attention_mask"][0].bool())
        condition = held["condition"][0].reshape(-1) if "condition" in held else torch.zeros(0, dtype=torch.int64)
        offsets = case["text_offset"], case["code_offset"]
        ids, targets = ids_and_targets(held["codes"][0].flatten(), condition, block, offsets, hybrid)
        assert torch.equal(ids, held["input_ids"][0]), case["name"]
        assert torch.equal(targets[prefix:], held["targets"][0][-len(targets[prefix:]) :]), case["name"]
    assert len(cases) == 11


def test_the_schedule_is_the_recorded_one(reference: Path) -> None:
    for case in json.loads((reference / "nbp" / "recipe.json").read_text())["cases"]:
        options = type("Options", (), {"lr": case["base_lr"], "warmup_steps": case["warmup_steps"]})
        rates = [nbp_cosine(options, tick + 1, case["max_steps"]) for tick in case["ticks"]]
        assert rates == pytest.approx(case["lr"], rel=1e-6, abs=1e-15)
        assert nbp_cosine(options, 0, case["max_steps"]) == 0.0


class Twin:
    """The same network, dense, and its training by torch."""

    def __init__(self) -> None:
        self.config = load_config(TINY, DATA)
        codec = build_codec(self.config.codec)
        self.loader, model = loader_of(open_source(self.config.data, codec), codec, self.config), self.config.model
        self.planes = normal(self.config.train.seed, "hyperplanes", (BITS, codec.channels))
        self.tiny = dense.Tiny(
            layers=model.num_layers,
            width=model.hidden_size,
            heads=model.num_attention_heads,
            groups=model.num_query_groups,
            ffn=model.ffn_hidden_size,
        )
        entries = [*TABLE.entries(model)]
        self.weights = {
            entry.hf: initial(entry, model, codec.channels, self.config.train.seed).requires_grad_()
            for entry in entries
        }
        decays = {entry.hf: entry.rule.decay is None and self.weights[entry.hf].dim() > 1 for entry in entries}
        groups = [
            {"params": [w for name, w in self.weights.items() if decays[name] == decay], "weight_decay": 0.1 * decay}
            for decay in (True, False)
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3)

    def step(self, rate: float) -> dict[str, float]:
        """Loss, accuracy and gradient norm of one step."""
        losses, right = [], []
        for sample in (sample for row in next(self.loader) for sample in row.samples):
            cells = sample.mean.permute(0, 2, 3, 1).flatten(0, 2)
            codes = ((cells @ self.planes.T > 0) * 2 ** torch.arange(BITS)).sum(1)
            ids, targets = codes[:-BLOCK], codes[BLOCK:]
            place = torch.arange(len(ids))
            allowed = place // BLOCK <= (place // BLOCK)[:, None]
            x = dense.decoder(self.weights, self.tiny, self.weights["tok_emb.weight"][ids], place, allowed)
            logits = F.linear(x, self.weights["head.weight"])
            losses.append(F.cross_entropy(logits, targets, reduction="none"))
            right.append((logits.argmax(1) == targets).float())
        loss = torch.cat(losses).mean()
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for parameter, gradient in zip(self.weights.values(), gradients):
            parameter.grad = gradient * min(1.0, 1.0 / (norm + 1e-6))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        return {"loss": float(loss.detach()), "accuracy": float(torch.cat(right).mean()), "grad_norm": norm}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, float]]]:
    """Numbers of four steps under either schedule, by hand: two steps of warm-up."""
    rates = {OWN: [0.0, 0.0, 0.01, 0.02 * (1 + math.cos(math.pi * 2 / 4)) / 2], CONSTANT: [0.01, 0.02, 0.02, 0.02]}
    found = {}
    for schedule, values in rates.items():
        twin = Twin()
        found[schedule] = [{**twin.step(rate), "learning_rate": rate} for rate in values]
        twin.loader.close()
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in every layout; and two that go on in another layout than they began in."""
    folder = tmp_path_factory.mktemp("ids")
    site = make(folder / "site", "outside_ids")
    assert not (site / "megatron_videogpt" / "objective" / "next_clip").exists()

    def case(name: str, steps: int, *options: str) -> tuple[str, ...]:
        return (*COMMON, f"train.output={folder / name}", f"train.steps={steps}", *options)

    train(site, 1, [case("alone", STEPS, OWN), case("one, DP2", 2, CONSTANT)])
    whole = [case(name, STEPS, OWN, *layout) for name, layout in LAYOUTS.items()]
    resumed = [("one, DP2", STEPS, ()), ("TP2+SP, CP2", 2, LAYOUTS["TP2+SP"]), ("TP2+SP, CP2", STEPS, LAYOUTS["CP2"])]
    train(site, 2, [*whole, *(case(name, steps, CONSTANT, *layout) for name, steps, layout in resumed)])
    return folder


@pytest.mark.parametrize("run", ["alone", *LAYOUTS, "one, DP2", "TP2+SP, CP2"])
def test_it_trains_as_the_dense_network_does(runs: Path, expected: Any, run: str) -> None:
    found = lines(runs / run)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line, wanted in zip(found, expected[CONSTANT if "," in run else OWN]):
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (line["step"], name)
    assert not any("loss_t" in name for line in found for name in line)
