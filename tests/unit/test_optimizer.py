"""The optimizer against torch's own AdamW, which is told by name what decays and is fed the gradients of the run before
they are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.session import Session

pytestmark = pytest.mark.usefixtures("processes")

NEVER_DECAYED = """embedding.noisy_patch.bias embedding.clean_patch.bias embedding.time_token.mlp.0.bias
embedding.time_token.mlp.2.bias decoder.layers.0.input_layernorm.weight decoder.layers.0.pre_mlp_layernorm.weight
decoder.layers.1.input_layernorm.weight decoder.layers.1.pre_mlp_layernorm.weight decoder.final_layernorm.weight
head.time_embedder.mlp.0.bias head.time_embedder.mlp.2.bias head.modulation.bias head.linear.bias""".split()
"""Of the parameters of a `Session`, with `optimizer.decay = "matrices"`."""


class Twin:
    """torch's AdamW on copies of a session's main parameters, fed the gradients that the session's steps record."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.grads = session, [dict[str, Tensor]()]
        self.parameters = {name: main.detach().clone() for name, main in session.named().items()}
        exempt = [value for name, value in self.parameters.items() if name in NEVER_DECAYED]
        rest = [value for name, value in self.parameters.items() if name not in NEVER_DECAYED]
        assert len(exempt) == len(NEVER_DECAYED)
        self.adam = torch.optim.AdamW(
            [{"params": rest, "exempt": False}, {"params": exempt, "exempt": True}], foreach=False, fused=False
        )
        self.watch(monkeypatch)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record the gradients of each step of the session as they come out of its reduction."""
        from megatron_videogpt.platforms import compat

        real: Callable[..., None] = compat.take_step

        def take_step(optimizer: Any, *decision: Tensor) -> None:
            if optimizer is self.session.optimizer:
                self.grads.append({name: main.grad.detach().clone() for name, main in self.session.named().items()})
            real(optimizer, *decision)

        monkeypatch.setattr(compat, "take_step", take_step)

    def step(self, options: Any, rate: float) -> float:
        """The step that the session just took, by hand and with these options; returns the gradient's norm."""
        grads = self.grads[-1]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads.values()))
        factor = min(1.0, options.clip_grad / (norm + 1e-6)) if options.clip_grad else 1.0
        for name, parameter in self.parameters.items():
            parameter.grad = (grads[name].double() * factor).float()
        for group in self.adam.param_groups:
            decay = options.weight_decay if options.decay == "all" or not group["exempt"] else 0.0
            group.update(lr=rate, weight_decay=decay, betas=options.betas, eps=options.eps)
        self.adam.step()
        return norm

    def distance(self) -> float:
        """Largest relative difference of any main parameter."""
        mains = self.session.named()
        return max(
            float((mains[name].detach() - value).norm() / value.norm()) for name, value in self.parameters.items()
        )


@pytest.mark.parametrize(
    ("precision", "decay", "clip"),
    [("fp32", "matrices", 0.25), ("fp32", "all", 0.0), ("bf16", "matrices", 0.0), ("bf16", "all", 0.25)],
)
def test_five_steps_are_torchs_own(precision: str, decay: str, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(precision=precision, decay=decay, betas=(0.8, 0.9), eps=1e-3, clip_grad=clip)
    twin, options = Twin(session, monkeypatch), session.config.optimizer
    start = {name: value.clone() for name, value in twin.parameters.items()}
    for number in range(5):
        done = session.step(session.rows(number), clip)
        norm = twin.step(options, options.lr)
        assert float(done.norm) == pytest.approx(norm, rel=1e-5) and norm > 0.25
    assert twin.distance() <= 1e-6
    assert min(float((value - start[name]).norm()) for name, value in twin.parameters.items()) > 1e-3


def test_what_decays_is_said_by_dimensions_and_holds_for_every_parameter() -> None:
    session = Session()
    groups = session.optimizer.param_groups
    exempt = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    named = session.named()
    assert {name for name, main in named.items() if id(main) in exempt} == set(NEVER_DECAYED)
    shapes = {name: parameter.dim() for name, parameter in session.chunks[0].module.named_parameters()}
    assert {name for name, dimensions in shapes.items() if dimensions == 1} == set(NEVER_DECAYED)
    assert {group["weight_decay"] for group in Session(decay="all").optimizer.param_groups} == {0.1}


RULES = {
    "head.linear.weight": {"rate": 0.25},
    "head.linear.bias": {"rate": 0.25, "decay": 0.5},
    "embedding.hint": {"decay": 0.0},
    "decoder.final_layernorm.weight": {"decay": 2.0},
}


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_multipliers_of_rules_hold_for_their_parameters_alone(decay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps against torch's AdamW with a group for every parameter; its state is by parameter, so nothing but
    rates and decays tells the groups apart.
    """
    session = Session(rules=RULES, decay=decay, eps=1e-3, clip_grad=0.0)
    twin, options = Twin(session, monkeypatch), session.config.optimizer
    groups = []
    for name, value in twin.parameters.items():
        given = RULES.get(name, {})
        usual = float(decay == "all" or name not in NEVER_DECAYED)
        wanted = options.lr * given.get("rate", 1.0), options.weight_decay * given.get("decay", usual)
        groups.append({"params": [value], "lr": wanted[0], "weight_decay": wanted[1]})
    twin.adam = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, foreach=False, fused=False)
    for number in range(3):
        set_rate(session, options.lr)
        session.step(session.rows(number), 0.0)
        for name, parameter in twin.parameters.items():
            parameter.grad = twin.grads[-1][name]
        twin.adam.step()
    assert twin.distance() <= 1e-6
    plain = Session(decay=decay).optimizer.param_groups
    assert len(session.optimizer.param_groups) > len(plain) == 2


def set_rate(session: Session, rate: float) -> None:
    from megatron_videogpt.train.optimizer import set_learning_rate

    set_learning_rate(session.optimizer, rate)


BEFORE = {
    "lr": 1e-2,
    "min_lr": 0.0,
    "schedule": "constant",
    "warmup_steps": 2,
    "betas": (0.9, 0.95),
    "eps": 1e-3,
    "weight_decay": 0.1,
    "decay": "all",
}
BEFORE |= {"allow_rate_jump": False, "clip_grad": 0.5, "ema_decay": 0.9, "spike_factor": 3.0, "max_skipped": 10}
TODAY = {
    "lr": 4e-3,
    "min_lr": 1e-3,
    "schedule": "cosine",
    "warmup_steps": 1,
    "betas": (0.7, 0.8),
    "eps": 1e-2,
    "weight_decay": 0.4,
    "decay": "matrices",
}
TODAY |= {"allow_rate_jump": True, "clip_grad": 0.25, "ema_decay": 0.6, "spike_factor": 50.0, "max_skipped": 1}
TODAY |= {"lr_wsd_decay_style": "cosine", "lr_wsd_decay_iters": 3, "lr_wsd_decay_share": 0.2}
TODAY |= {"lr_wsd_decay_ends": (12,)}
STEPS = 12


def test_options_of_today_hold_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the optimizer is another one after the resume: groups, rates, clipping, average and gate are
    those of today.
    """
    from megatron_videogpt.checkpoint.load import load_checkpoint
    from megatron_videogpt.checkpoint.save import Saver
    from megatron_videogpt.checkpoint.saved import find_checkpoint
    from megatron_videogpt.config.schema import OptimizerConfig
    from megatron_videogpt.errors import RunError
    from megatron_videogpt.train import health
    from megatron_videogpt.train.run import State
    from tests.unit.test_in_flight import samples, start

    assert all(
        getattr(OptimizerConfig(**BEFORE), f.name) != getattr(OptimizerConfig(**TODAY), f.name)
        for f in fields(OptimizerConfig)
    )
    monkeypatch.setattr(health, "REMEMBERED", 4)
    first, _ = start(tmp_path, steps=STEPS, **BEFORE)
    data, run = samples(broken=(8,)), first.run
    session = run.session
    twin, average = Twin(session, monkeypatch), {name: main.detach().clone() for name, main in session.named().items()}

    def go_on(flight: Any, options: Any, rate: float) -> None:
        flight.launch(data)
        twin.step(options, rate)
        for name, value in average.items():
            value.lerp_(twin.parameters[name], 1 - options.ema_decay)

    for rate in (5e-3, 1e-2, 1e-2):
        go_on(first, run.config.optimizer, rate)
    first.flush()
    config = replace(run.config, train=replace(run.config.train, output=str(tmp_path)))
    path = Saver(config, run.chunks, run.optimizer, run.average, "codec").save(asdict(run.state), must=True)
    assert path is not None

    second, _ = start(tmp_path, steps=STEPS, **TODAY)
    run = second.run
    saved = load_checkpoint(find_checkpoint(tmp_path), run.chunks, run.optimizer, run.average)
    second, _ = start(
        tmp_path,
        steps=STEPS,
        session=run.session,
        state=State(**{f.name: saved[f.name] for f in fields(State)}),
        **TODAY,
    )
    twin.session = run.session
    assert twin.distance() <= 1e-6
    for group in run.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == (
            (0.7, 0.8),
            1e-2,
            0.4 * group["wd_mult"],
        ) and group["fused"]
    # One step of warm-up, then a cosine over the other eleven.
    rates = [1e-3 + 3e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 10)) for step in (3, 4, 5, 6)]
    for rate in rates:
        go_on(second, run.config.optimizer, rate)
        assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([rate, rate], rel=1e-12)
    second.complete()
    assert twin.distance() <= 1e-6 and second.run.state.updates == 7
    names = {id(main): name for name, main in run.session.named().items()}
    mains = [main for group in run.optimizer.param_groups for main in group["params"]]
    assert (
        max(
            float((shard - average[names[id(main)]]).norm() / shard.norm())
            for shard, main in zip(run.average.shards, mains)
        )
        <= 1e-6
    )
    norms = second.gates[0].norms
    assert second.gates[0].limit == 50.0 * (sorted(norms)[1] + sorted(norms)[2]) / 2 and len(norms) == 4
    second.launch(data)
    with pytest.raises(RunError, match="max_skipped = 1"):
        second.complete()
