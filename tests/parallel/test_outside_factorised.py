"""An objective of another distribution with a network of its own kind (masks in space and time, a text, modulation) is
trained by the trainer as it is: the numbers of every step are those of a dense twin trained in plain torch.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.config import sections
from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.sources.open import open_source
from tests import factorised_dense as dense
from tests.loading import loader_of
from tests.outside import site as sites

from .conftest import CONFIG
from .launch import interpreter, run, start, torchrun

OUTSIDE = "outside_factorised"
STEPS = 4
# Start values large enough for every layer to matter, a gradient that is clipped, and rows of two samples and of one.
OPTIONS = f"""objective.name={OUTSIDE} model.num_layers=4 model.init_std=0.2 optimizer.schedule=constant
    optimizer.warmup_steps=0 optimizer.lr=1e-3 optimizer.clip_grad=0.5 train.steps={STEPS} train.global_batch_size=3
    data.pack_tokens=128 checkpoint.every=0""".split()
HALF = ["train.steps=2"]
TENSOR, CONTEXT = ["parallel.tensor=2", "parallel.sequence=true"], ["parallel.context=2"]
# A row for each of three samples, so that the second process fills up with one without any.
DATA = ["data.pack_tokens=64"]
IN_ONE = {"one process": ("one", []), "the first half of it": ("DP2 goes on", HALF)}
IN_TWO = {
    "TP2 SP": ("TP2 SP", TENSOR),
    "CP2": ("CP2", CONTEXT),
    "DP2": ("DP2", DATA),
    "the first half with TP2 SP": ("CP2 goes on", TENSOR + HALF),
    "the second half with CP2": ("CP2 goes on", CONTEXT),
    "the second half with DP2": ("DP2 goes on", DATA),
}
"""What is trained in a launch, in this order -> the run's folder and options beside `OPTIONS`."""
RUNS = sorted({folder for folder, _ in (*IN_ONE.values(), *IN_TWO.values())})
NAMES = ("loss", "grad_norm", "loss_even_frames", "loss_odd_frames")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without its own objective, and this one."""
    folder = sites.make(tmp_path_factory.mktemp("site"), OUTSIDE)
    assert not (folder / "megatron_videogpt" / "objective" / "next_clip").exists()
    shutil.copy(sites.HERE / "worker.py", folder)
    return folder


@pytest.fixture(scope="module")
def runs(site: Path) -> Path:
    """The folder of all runs."""
    folder = site / "runs"

    def worker(launch: dict[str, tuple[str, list[str]]]) -> list[str]:
        cases = [(CONFIG, [*OPTIONS, *more, f"train.output={folder / name}"]) for name, more in launch.values()]
        (site / "cases.json").write_text(json.dumps(cases))
        return [str(site / "worker.py"), str(site / "cases.json")]

    alone = run(interpreter(*worker(IN_ONE)), cold=True, PYTHONPATH=str(site))
    assert alone.returncode == 0, alone.stderr
    torchrun(2, *worker(IN_TWO), cold=True, PYTHONPATH=str(site))
    return folder


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    """That of the runs.  The objective is known in this process meanwhile, and no longer: others count objectives."""
    with pytest.MonkeyPatch.context() as patch:
        known = dict(sections._entered["objective"])
        patch.setitem(sections._entered, "objective", known)
        importlib.import_module(f"{sites.__package__}.{OUTSIDE}.options")
        yield load_config(CONFIG, OPTIONS)


def parts_of(config: Config) -> tuple[Any, Any, Any]:
    """Objective, codec and source of a configuration."""
    from megatron_videogpt.codec.build import build_codec
    from megatron_videogpt.objective.build import build_objective

    codec = build_codec(config.codec)
    return build_objective(config), codec, open_source(config.data, codec)


@pytest.fixture(scope="module")
def twin(config: Config) -> list[dict[str, float]]:
    """The numbers of each step of the dense twin: samples one by one, and AdamW of torch."""
    objective, codec, source = parts_of(config)
    loader = loader_of(source, codec, config)
    weights, options = start_weights(config, codec.channels), config.optimizer
    groups = [
        {"params": [w for w in weights.values() if (w.dim() > 1) == matrix], "weight_decay": decay}
        for matrix, decay in ((True, options.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps)
    steps = []
    for _ in range(config.train.steps):
        videos = [objective.video(sample) for row in next(loader) for sample in row.samples]
        losses = [loss for video in videos for loss in frame_losses(weights, video)]
        optimizer.zero_grad()
        total = torch.stack([loss for _, loss in losses]).mean()
        total.backward()
        gradients = [w.grad for w in weights.values() if w.grad is not None]
        assert len(gradients) == len(weights)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for gradient in gradients:
            gradient.div_(max(1.0, (norm + 1e-6) / options.clip_grad))
        optimizer.step()
        kinds = [[loss.item() for number, loss in losses if number % 2 == odd] for odd in (0, 1)]
        steps.append(dict(zip(NAMES, (total.item(), norm, *(sum(kind) / len(kind) for kind in kinds)))))
    loader.close()
    assert any(step["grad_norm"] > options.clip_grad for step in steps), "a gradient is clipped"
    return steps


def start_weights(config: Config, channels: int) -> dict[str, torch.Tensor]:
    """What a run starts with, by name."""
    from megatron_videogpt.model.tensors import from_hf, initial
    from megatron_videogpt.objective.build import parameter_table

    entries = list(parameter_table(config).entries(config.model))
    seed, model = config.train.seed, config.model
    whole = {entry.name: from_hf(entry, initial(entry, model, channels, seed), model) for entry in entries}
    assert whole.keys() == dense.weights_of().keys()
    return {name: weight.clone().requires_grad_() for name, weight in whole.items()}


def frame_losses(weights: dict[str, torch.Tensor], video: Any) -> list[tuple[int, torch.Tensor]]:
    """Number and mean squared error of each frame that is predicted."""
    output = dense.answer(weights, video._asdict(), video.prompt)
    wanted = video.target[video.prompt :]
    errors = (output.view(wanted.shape) - wanted).square().mean(dim=(1, 2))
    return list(enumerate(errors, start=video.prompt))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_numbers_of_the_dense_twin(name: str, runs: Path, twin: list[dict[str, float]]) -> None:
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, wanted in zip(lines, twin, strict=True):
        for metric in NAMES:
            assert line[metric] == pytest.approx(wanted[metric], rel=1e-5), (line["step"], metric)
    assert (runs / name / "loss.png").is_file()


def test_closed_forms_are_what_rows_have(config: Config) -> None:
    from megatron_videogpt.objective.build import work_of
    from megatron_videogpt.sequence.intervals import attended_pairs

    objective, codec, source = parts_of(config)
    loader, work = loader_of(source, codec, config), work_of(config, codec)
    samples = [sample for _ in range(STEPS) for row in next(loader) for sample in row.samples]
    loader.close()
    found = work.of(source.train.plans(config.train.seed, [sample.number for sample in samples]))
    for number, sample in enumerate(samples):
        row = objective.prepare([sample], 1)
        pairs = sum(attended_pairs(mask.intervals) for mask in row.masks)
        counted = found.tokens[number], found.pairs[number], found.scored[number]
        assert counted == (row.length, pairs, len(row.scored_rows))
        assert row.length == objective.length(sample)
    side = config.data.physics.size
    assert len(set(found.scored)) > 2 and max(found.scored) == work.largest((side, side)).scored


def test_blanks_do_not_count(config: Config) -> None:
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.base import ONLY

    objective, codec, source = parts_of(config)
    in_two = load_config(CONFIG, OPTIONS + DATA)
    shares = [loader_of(source, codec, in_two, rank, 2) for rank in (0, 1)]
    samples = [[row.samples for row in next(share)] for share in shares]
    scored = [[sample.scored for sample in row] for rows in samples for row in rows]
    assert sorted(scored) == [[False], [True], [True], [True]], "DP2 trains a row of nothing but a blank"
    sample = next(sample for rows in samples for row in rows for sample in row if sample.scored)
    nothing = Sample(3, "nothing", torch.zeros(4, codec.channels, 3, 5), None, (4,), scored=False)

    def numbers(*samples: Any) -> tuple[Any, ...]:
        row = objective.prepare(list(samples), 1)
        score = objective.score(torch.ones_like(row.target), row, ONLY)
        return float(score.total), *score.sums.tolist(), score.count, *score.counts.tolist()

    assert numbers(nothing) == (0.0, 0.0, 0.0, 0, 0, 0)
    for both in ((sample, nothing), (nothing, sample)):
        assert numbers(*both) == pytest.approx(numbers(sample), rel=1e-6)


@pytest.mark.parametrize(("option", "value"), [("parallel.pipeline", 1), ("parallel.pipeline", 2)])
def test_only_a_pipeline_is_refused(option: str, value: int, site: Path) -> None:
    command = [*interpreter("-m", "megatron_videogpt", "check", CONFIG), *OPTIONS, f"{option}={value}"]
    process = start(command, cold=True, cwd=site, PYTHONPATH=str(site))
    assert isinstance(process, subprocess.Popen)
    output, errors = process.communicate(timeout=120)
    if value == 1:
        assert process.returncode == 0 and "cells of a frame" in output, output + errors
        return
    assert process.returncode != 0
    refused = [line for line in (output + errors).splitlines() if option in line]
    assert len(refused) == 1 and f"with objective.name = {OUTSIDE}, whose network does not split over it" in refused[0]
