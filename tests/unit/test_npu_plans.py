"""Attention on Ascend NPUs planned ahead of the pass that needs it, over the stand-in for torch_npu's operators."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_videogpt.attention import npu, plan_ahead
from megatron_videogpt.attention import plan as plans
from megatron_videogpt.config.schema import Config, TrainConfig
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.platforms import Platform
from megatron_videogpt.sequence.layout import layout, training_shape
from tests import factorised_prompt as small
from tests.unit.test_npu_attention import FEW
from tests.unit.test_npu_masks import defined, tensors

__all__ = ["defined"]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_pass_makes_no_plan_of_its_own(recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows planned ahead: the same loss and gradients, masks sent once a pass and not once a layer, and no look at the
    intervals, for which the host would wait.
    """
    from megatron_videogpt.model.ahead import planner
    from tests.unit.test_last_layer import CLIPS, built, close, gradients, loss_of, row_of

    row = row_of(CLIPS[0])
    plain = built(recompute)
    loss = loss_of(plain, row)
    loss.backward()
    wanted = gradients(plain)
    assert planner([plain], torch.device("cpu"))(row) is row, "ranged needs none"
    model, sent = built(recompute, backend="npu"), []
    planned = planner([model], torch.device("cpu"))(row)
    real = npu.on_device
    monkeypatch.setattr(npu, "on_device", lambda *arguments: sent.append(1) or real(*arguments))
    for module, name in ((npu, "covering"), (plans, "table_of"), (npu, "table_of")):
        monkeypatch.setattr(module, name, lambda *arguments: pytest.fail("planned in a pass"))
    found = loss_of(model, planned.to(torch.device("cpu")))
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    close(gradients(model), wanted)
    assert len(sent) == 2, "all rows, and the scored ones of the last layer"
    with torch.no_grad():
        loss_of(model, planned)
    assert len(sent) == 3, "scored rows have no pass of their own without gradients"


@pytest.mark.usefixtures("processes")
def test_chunks_of_a_rank_share_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two virtual stages sends masks, the last one takes and forgets them and sends those of the scored
    rows; the next pass sends its own.
    """
    from megatron_videogpt.model.ahead import planner
    from tests.unit.test_last_layer import CLIPS, built, row_of

    model, sent = built("none", backend="npu"), []
    row = planner([model], torch.device("cpu"))(row_of(CLIPS[0]))
    real = npu.on_device
    monkeypatch.setattr(npu, "on_device", lambda *arguments: sent.append(1) or real(*arguments))
    monkeypatch.setattr(model.config, "virtual_pipeline_model_parallel_size", 2)
    for number in (1, 2):
        found = []
        for chunk in (0, 1):
            monkeypatch.setattr(model, "vp_stage", chunk)
            monkeypatch.setattr(model, "scored_only", chunk == 1)
            found.append(model._inputs(row, {}, None)[0].masks[0])
        first, last = found
        assert first.plan is last.plan and first.plan_of_scored is None and last.plan_of_scored is not None
        assert row.masks[0].plan._sent is None and len(sent) == 2 * number


@pytest.mark.usefixtures("processes")
def test_validation_plans_no_scored_rows() -> None:
    from megatron_videogpt.model.ahead import planner
    from tests.unit.test_last_layer import CLIPS, built, row_of

    model, row = built("none", backend="npu"), row_of(CLIPS[0])
    for trains in (True, False):
        (mask,) = planner([model], torch.device("cpu"), trains)(row).masks
        assert (mask.plan.scored is not None) == trains


def test_a_text_beside_a_row_is_planned_ahead(
    platform: Platform, processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factorised network: no look at intervals of any of its attentions in a pass."""
    from megatron_videogpt.model.ahead import planner
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of
    from megatron_videogpt.objective.frame_prompt.factorised.rows import assemble

    variant = small.VARIANTS["with text"]
    config, weights = Config(model=small.MODEL, train=TrainConfig(precision="fp32")), small.weights_of(variant)
    row, results = assemble(small.rows_of(variant)[0], 8, variant, 2), []
    for backend in ("ranged", "npu"):
        network = VideoGPT(config, small.CHANNELS, platform, backend, ends_of(variant))
        load_released(network, small.MODEL, lambda entry: weights[entry.hf])
        planned = planner([network], torch.device("cpu"))(row)
        with monkeypatch.context() as patch:
            for module, name in ((npu, "covering"), (npu, "table_of")) if backend == "npu" else ():
                patch.setattr(module, name, lambda *arguments: pytest.fail("planned in a pass"))
            loss = small.loss_of(network(planned.to(torch.device("cpu"))), row.target)
            loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
    (wanted, exact), (found, ours) = results
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        assert (ours[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_equal_rows_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table, made = layout(training_shape((1, 2, 1), (3, 4))).intervals, []
    real = npu.covering
    monkeypatch.setattr(npu, "covering", lambda *arguments: made.append(1) or real(*arguments))
    one, two = (plan_ahead("npu", table.clone(), 4, 16, torch.device("cpu")) for _ in range(2))
    assert one.boxes is two.boxes and len(made) == 1
    q, k, v, _ = tensors(len(table), len(table))
    for _ in range(2):
        npu.attend(q, k, v, table.clone(), 0.1)
    assert len(made) == 1, "without a plan, too: the values are looked up"
    with pytest.raises(AssertionError, match="a plan of another mask"):
        q, k, v, _ = tensors(len(table) + 1, len(table) + 1)
        npu.attend(q, k, v, torch.cat([table, table[-1:]]), 0.1, plan=one.send())


def test_kept_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last stay."""
    made: list[int] = []
    real = npu.covering
    monkeypatch.setattr(npu, "covering", lambda table, costs: made.append(len(table)) or real(table, costs))
    tables = [plans.table_of(layout(training_shape(clips, (3, 4))).intervals) for clips in ((1, 1), (1, 2), (1, 3))]
    sizes = [npu._size(table, npu._kept(table, FEW, False)) for table in tables]
    assert npu._kept._bytes == sum(sizes) and len(made) == 3
    npu._kept(tables[0], FEW, False)
    monkeypatch.setattr(npu, "_KEPT_BYTES", sizes[0] + sizes[2])
    npu._kept(tables[2], plans.Costs(10, 8, 0.06), False)
    assert len(npu._kept._plans) == 1 or npu._kept._bytes <= sizes[0] + sizes[2]
    monkeypatch.setattr(npu, "_KEPT_BYTES", 1)
    for _ in range(2):
        npu._kept(tables[1], FEW, False)
    assert list(npu._kept._plans) == [(tables[1], FEW, False)] and npu._kept._bytes == sizes[1]
    assert len(made) == 5


@pytest.mark.usefixtures("processes")
def test_rows_are_planned_by_the_thread_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.train import trainer
    from megatron_videogpt.train.feed import StepData
    from tests.unit.test_in_flight import start
    from tests.unit.test_last_layer import row_of

    run = start(tmp_path)[0].run
    threads: list[str] = []

    def planner(chunks: list[Any], device: torch.device) -> Any:
        assert chunks == run.chunks
        return lambda row: (threads.append(threading.current_thread().name), row)[1]

    monkeypatch.setattr(trainer, "is_reader", lambda: False)
    monkeypatch.setattr(trainer, "step_data", lambda *arguments: StepData([], [row_of((1, 1))], {}))
    monkeypatch.setattr(trainer, "planner", planner)
    data = trainer.prefetch_steps(run)
    assert len(next(data).rows) == 1
    data.close()
    assert set(threads) == {"data ahead"}


class Reached(Exception):
    """What the test looks at is done."""


@pytest.mark.usefixtures("processes")
def test_validation_plans_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.train import validation
    from tests.unit.test_in_flight import start
    from tests.unit.test_last_layer import row_of

    run, planned = start(tmp_path)[0].run, []
    run.objective = SimpleNamespace(prepare=lambda samples, multiple: row_of((1, 1)))

    def planner(chunks: list[Any], device: torch.device, trains: bool) -> Any:
        assert chunks == run.networks[0].chunks and not trains
        return lambda row: planned.append(row) or row

    def run_rows(model: Any, objective: Any, rows: list[Any], **options: Any) -> None:
        assert len(rows) == len(planned) == 1
        raise Reached

    monkeypatch.setattr(validation, "planner", planner)
    monkeypatch.setattr(validation, "run_rows", run_rows)
    monkeypatch.setattr(validation.Validation, "_read", lambda self, run: ([], [(0, 0)]))
    sample = Sample(0, "0", torch.zeros(2, 4, 4, 6), None, (1, 1))
    monkeypatch.setattr(validation.Validation, "_to_all", lambda self, run: [sample])
    with pytest.raises(Reached):
        validation.Validation(run).measure(run.model, SimpleNamespace(), 0)
