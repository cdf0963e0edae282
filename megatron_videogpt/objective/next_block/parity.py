"""Comparison with recorded numbers of the published next block prediction, in the format of its reference
(tests/golden/nbp/README.md names the source).

Errors are fractions of the recorded tensor's largest absolute value; of scalars and norms relative; of ids, targets,
masks and learning rates differing entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.schedules import learning_rate
from ...config.schema import Config, OptimizerConfig, ParallelConfig, TrainConfig
from ...hub.common.fsq_tokenizer import FSQTokenizer
from ...model.init import gather_released, load_released
from ...model.videogpt import Ends
from ...sequence.intervals import dense_mask
from ...sequence.row import Row
from ..recorded import Cases, Report
from .ends import ends_of, whole_logits
from .objective import NextBlock
from .parity_sampler import LIMITS as SAMPLER_LIMITS
from .parity_sampler import check_sampler
from .released import apart, open_folder, vocabulary_in
from .rows import assemble
from .sequence import Sequence
from .work import BlockWork

LIMITS = {
    "ids": 0.0,
    "targets": 0.0,
    "masks": 0.0,
    "closed forms": 0.0,
    "learning rates": 0.0,
    "forward": 2e-5,
    "intermediates": 2e-5,
    "loss": 1e-5,
    "loss per token": 1e-5,
    "accuracy": 1e-6,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
    "training steps": 1e-5,
    **SAMPLER_LIMITS,
}
"""Largest error of each quantity."""

Take = Callable[[NextBlock, list[Row], float], tuple[float, float]]
"""`take(objective, rows, rate)`: one optimizer step -> (loss before it, gradient norm before clipping)."""


def check_folder(
    folder: Path,
    parallel: ParallelConfig,
    build: Callable[[Config, Ends], Any],
    training: Callable[[Config, Any], Take],
    tokenizer: Callable[[Path], FSQTokenizer],
    report: Report,
) -> None:
    """Every case of a folder's transformer files.

    build: `build(config, ends)`, a network of one pipeline stage; training: `training(config, model)`, its optimizer;
    tokenizer: of a folder.
    """
    check_masks(Cases(folder, "masks_targets"), report)
    check_schedule(Cases(folder, "recipe"), report)

    def model_for(case: dict[str, Any]) -> tuple[Any, Config, NextBlock]:
        model, settings, tensor_of = open_folder(folder / case["checkpoint"])
        config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel)
        vocabulary = vocabulary_in(case, case["block"])
        network = build(config, ends_of(vocabulary, settings["prefix"]))
        load_released(network, model, tensor_of)
        return network, config, NextBlock(vocabulary, (), (), settings["prefix"])

    for name, check in (("forward", check_forward), ("loss", check_loss)):
        cases = Cases(folder, name)
        for case in cases:
            check(cases, case, *model_for(case), report)
    cases = Cases(folder, "train_steps")
    for case in cases:
        check_steps(cases, case, *model_for(case), training, report)
    cases = Cases(folder, "sampler")
    for case in cases:
        check_sampler(cases, case, *model_for(case), lambda name: tokenizer(folder / name), report)


def held_in(cases: Cases, case: dict[str, Any]) -> dict[str, Tensor]:
    """A case's tensors by their short names."""
    return {name: cases.get(case, name) for name in case.get("tensors", {})}


def sequences_of(case: dict[str, Any], held: dict[str, Tensor], objective: NextBlock) -> list[Sequence]:
    """Our sequences of a case's batch."""
    codes, (frames, rows, columns) = held["codes"], case["latent"]
    places = torch.arange(frames * rows * columns) // (rows * columns)
    none = torch.zeros(len(codes), 0, dtype=torch.int64)
    conditions = held.get("condition", none).reshape(len(codes), -1)
    return [objective.of_codes(one.flatten(), places, told) for one, told in zip(codes, conditions)]


def check_masks(cases: Cases, report: Report) -> None:
    """Ids, targets, masks, and how many there are in closed form (README sections 2-5)."""
    for case in cases:
        held = held_in(cases, case)
        vocabulary, name, first = vocabulary_in(case, case["block"]), case["name"], case["first_scored"]
        wrong = vocabulary.size != case["vocab_size"] or vocabulary.code_offset != case["code_offset"]
        report.add("ids", float(wrong), name)
        objective = NextBlock(vocabulary, (), (), case["prefix"])
        for number, item in enumerate(sequences_of(case, held, objective)):
            row, recorded = assemble([item], 1), held["targets"][number]
            work = BlockWork(vocabulary, case["prefix"]).of_tokens(held["codes"][number].numel())
            counted = [work.tokens != case["seq_len"], work.pairs != int(held["ends"].sum())]
            pairs = [("ids", row.streams["token"]["id"], held["input_ids"][number]), ("targets", row.target, recorded)]
            pairs += [("masks", row.intervals[:, 1], held["ends"])]
            pairs += [("masks", row.scored_rows, torch.arange(first, case["seq_len"]))]
            if "attention_mask" in held:
                pairs.append(("masks", dense_mask(row.intervals), held["attention_mask"][number].bool()))
            for quantity, ours, theirs in pairs:
                report.differing(quantity, ours, theirs, name)
            report.add("closed forms", float(sum(counted) + (work.scored != len(row.target))), name)


def check_schedule(cases: Cases, report: Report) -> None:
    """Learning rates (README section 6); step k runs at tick k - 1."""
    for case in cases:
        if case["kind"] != "schedule":
            continue
        options = OptimizerConfig(lr=case["base_lr"], warmup_steps=case["warmup_steps"], schedule="nbp_cosine")
        for tick, rate in zip(case["ticks"], case["lr"]):
            ours = learning_rate(options, tick + 1, case["max_steps"])
            report.add("learning rates", float(ours != rate), case["name"])


def check_forward(
    cases: Cases, case: dict[str, Any], model: Any, config: Config, objective: NextBlock, report: Report
) -> None:
    """Logits of every row, the condition's too, and where recorded the hidden states (README section 6)."""
    held, decoder = held_in(cases, case), model.decoder
    caught: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, output: caught.update({name: output[0] if isinstance(output, tuple) else output})

    hooks = [decoder.register_forward_pre_hook(lambda module, given: caught.update(embedded=given[0]))]
    for number, layer in enumerate(decoder.layers):
        hooks.append(layer.self_attention.register_forward_hook(keep(f"block{number}_attn")))
        hooks.append(layer.register_forward_hook(keep(f"block{number}_out")))
    hooks.append(decoder.final_layernorm.register_forward_hook(keep("final_norm_out")))
    row = replace(assemble(sequences_of(case, held, objective), 1, sampling=True), scored="token")
    with torch.no_grad():
        logits = whole_logits(model(row), objective.vocabulary)
    for hook in hooks:
        hook.remove()
    report.compare("forward", logits.view_as(held["logits"]), held["logits"], case["name"])
    for name in case["intermediates"]:
        report.compare("intermediates", caught[name].view_as(held[name]), held[name], f"{case['name']} ({name})")


def check_loss(
    cases: Cases, case: dict[str, Any], model: Any, config: Config, objective: NextBlock, report: Report
) -> None:
    """Loss, accuracies and gradients (README section 6)."""
    name, held = case["name"], held_in(cases, case)
    row = assemble(sequences_of(case, held, objective), 1)
    output = model(row)
    score = objective.score(output, row)
    (score.total / score.count).backward()
    _relative(report, "loss", float(score.total.detach()) / score.count, case["loss"], name)
    report.compare("loss per token", output.nll.view_as(held["nll"]), held["nll"], name)
    for place, best in enumerate((1, 5)):
        share = 100 * float(score.sums[place]) / int(score.counts[place])
        report.add("accuracy", abs(share - case[f"accuracy{best}"]) / 100, name)
    gradients = apart(gather_released(model, config.model, _gradient))
    total = float(torch.stack([value.norm() for value in gradients.values()]).norm())
    _relative(report, "gradient norms", total, case["grad_norm_total"], f"{name} (total)")
    for key, recorded in case["grad_norm"].items():
        # Softmax does not see a shift of all keys: a bias of theirs has rounding for a gradient.
        scale = case["grad_norm_total"] if key.endswith("attn.key.bias") else recorded
        error = abs(float(gradients[key].norm()) - recorded)
        report.add("gradient norms", error / scale if scale else error, f"{name} ({key})")
    for key, entry in (case.get("full_grads") or {}).items():
        if not key.endswith("attn.key.bias"):
            report.compare("gradients", gradients[key], cases.tensors[entry["key"]], f"{name} ({key})")


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _relative(report: Report, quantity: str, ours: float, recorded: float, case: str) -> None:
    report.add(quantity, abs(ours - recorded) / abs(recorded), case)


def check_steps(
    cases: Cases,
    case: dict[str, Any],
    model: Any,
    config: Config,
    objective: NextBlock,
    training: Callable[[Config, Any], Take],
    report: Report,
) -> None:
    """Optimizer steps: losses, gradient norms, learning rates, weights afterwards (README section 6)."""
    name, held = case["name"], held_in(cases, case)
    options = OptimizerConfig(
        lr=case["base_lr"],
        warmup_steps=case["warmup_steps"],
        schedule="nbp_cosine",
        betas=tuple(case["betas"]),
        eps=case["eps"],
        weight_decay=case["weight_decay"],
        clip_grad=case["grad_clip"],
    )
    config = replace(config, optimizer=options)
    take = training(config, model)
    for step in range(case["steps"]):
        rate = learning_rate(options, step, case["max_steps"])
        report.add("learning rates", float(rate != case["lr"][step]), f"{name} {step}")
        batch = {key: value[step] for key, value in held.items()}
        loss, norm = take(objective, [assemble(sequences_of(case, batch, objective), 1)], rate)
        _relative(report, "training steps", loss, case["loss"][step], f"{name} loss {step}")
        _relative(report, "training steps", norm, case["grad_norm"][step], f"{name} gradient norm {step}")
    weights = apart(gather_released(model, config.model, lambda parameter: parameter.data))
    for key, recorded in case["final_norm"].items():
        # Adam makes steps of full size of a key bias's rounding.
        if not key.endswith("attn.key.bias"):
            _relative(report, "training steps", float(weights[key].norm()), recorded, f"{name} ({key})")
