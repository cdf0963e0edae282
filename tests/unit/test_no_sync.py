"""A training step queues its work without waiting for it: no value of a tensor reaches the host, and whether to take a
step is decided on the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.session import Session
from tests.waits import Doubles, waits

DOUBLE = torch.zeros(2, dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("processes")


def host_step(session: Session, rows: list[Any], clip: float) -> float:
    """The step as it was made before: megatron-core decides on the host, clips with a number and calls AdamW; returns
    the gradient norm.
    """
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    from megatron_videogpt.train.step import run_schedule

    session.chunks[0].zero_grad_buffer()
    session.optimizer.zero_grad()
    run_schedule(session.chunks, session.objective, rows, forward_only=False)
    session.optimizer.prepare_grads()
    norm = float(session.optimizer.get_grad_norm())
    clip_grad_by_total_norm_fp32(
        session.optimizer.chained_optimizers[0].get_parameters(), max_norm=clip, total_norm=norm
    )
    for group in session.optimizer.param_groups:
        group["fused"] = False
    session.optimizer.step_with_ready_grads()
    return norm


@pytest.mark.parametrize("recompute", ["none", "selective", "mlp", "full"])
def test_nothing_of_a_step_reaches_the_host(recompute: str) -> None:
    from megatron_videogpt.train.async_values import AsyncValue

    session = Session(recompute)
    session.step(session.rows(0))
    rows = session.rows(1)
    with waits() as found:
        done = session.step(rows)
        AsyncValue(torch.stack([done.norm, done.taken.to(done.norm)]))
    assert found == []


def test_the_watch_sees_what_waits() -> None:
    values = torch.arange(4.0)
    for wait in (
        lambda: values[0].item(),
        lambda: float(values[1]),
        lambda: bool(values[1] > 0),
        lambda: values.tolist(),
        lambda: values[values > 1],
        lambda: torch.masked_select(values, values > 1),
        lambda: values.nonzero(),
        lambda: torch.tensor(1.0, device="cuda"),
        lambda: values.to("cuda"),
    ):
        with waits() as found:
            wait()
        assert found, wait


def test_the_watch_sees_float64() -> None:
    values = torch.arange(4.0)
    for action in (
        lambda: values.double(),
        lambda: torch.zeros(2, dtype=torch.float64),
        lambda: torch.as_tensor(np.arange(2.0)).float(),
        lambda: torch.distributed.all_reduce(DOUBLE),
        lambda: torch.distributed.all_gather([torch.empty_like(DOUBLE)], DOUBLE),
        lambda: torch.distributed.broadcast(DOUBLE, 0),
    ):
        with Doubles() as watch:
            action()
        assert watch.found, action
    with Doubles() as watch:
        torch.distributed.all_reduce((values * 2.0 + 1 <= 1e300).float())
    assert watch.found == [] and watch.collectives == 1


def test_megatron_cores_own_step_would_wait() -> None:
    session = Session()
    host_step(session, session.rows(0), 1.0)
    with waits() as found:
        host_step(session, session.rows(1), 1.0)
    assert any(place.startswith("Tensor.item") and "optimizer/clip_grads.py" in place for place in found)


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_steps_are_those_that_the_host_decided(clip: float) -> None:
    ours, before = Session(), Session()
    for number in range(5):
        done, norm = ours.step(ours.rows(number), clip), host_step(before, before.rows(number), clip)
        assert float(done.norm) == pytest.approx(norm, rel=1e-6) and bool(done.taken)
        assert (norm > clip) == (clip < 1)
    for mine, theirs in zip(ours.parameters(), before.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_first_step_by_hand() -> None:
    session = Session(eps=1e-3, decay="all")
    before = [p.detach().double() for p in session.parameters()]
    done = session.step(session.rows(0), clip=0.25)
    # The kernel leaves clipped gradients behind: their norm is clip * norm / (norm + 1e-6).
    grads = [p.grad.double() for p in session.parameters()]
    assert float(sum(g.square().sum() for g in grads).sqrt()) == pytest.approx(0.25, rel=1e-5)
    assert float(done.norm) > 0.25
    for p, start, g in zip(session.parameters(), before, grads):
        # Bias correction makes the first moments g and g^2.
        expected = start * (1 - 1e-2 * 0.1) - 1e-2 * g / (g.abs() + 1e-3)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "limit"), [(math.nan, math.inf), (math.inf, math.inf), (1.0, 1e-3)], ids=["nan", "inf", "spike"]
)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_step_changes_nothing(factor: float, limit: float, fused: bool, first: bool) -> None:
    from megatron_videogpt.platforms import compat

    session, undisturbed = Session(), Session()
    for one in (session, undisturbed):
        for group in one.optimizer.param_groups:
            group["fused"] = fused
        if first:
            compat.seed_optimizer_state(one.optimizer)
        else:
            one.step(one.rows(0))
    before = session.everything()
    done = session.step(session.rows(1, factor), limit=limit)
    assert not bool(done.taken) and not done.totals.sums.any() and not done.totals.counts.any()
    assert math.isfinite(float(done.norm)) == (factor == 1.0)
    for mine, kept in zip(session.everything(), before, strict=True):
        assert torch.equal(mine, kept)
    # The step after it is the one that would have come without it, bit for bit.
    session.step(session.rows(2))
    undisturbed.step(undisturbed.rows(2))
    for mine, expected in zip(session.everything(), undisturbed.everything(), strict=True):
        assert torch.equal(mine, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.floats(0, allow_nan=False, allow_infinity=True),
    st.integers(0, 2),
)
def test_which_norms_are_taken(value: float, limit: float, frames: int) -> None:
    """`update` on a gradient of one number, whose norm is its size where its square is a float32 number."""
    from megatron_videogpt.train.step import update

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = Lone(parameter, torch.tensor([value]))
    norm, taken, scored = update(optimizer, 1.0, limit, torch.tensor(frames))
    root = float(torch.tensor(abs(value)).square().sqrt())
    assert bool(scored) == (frames > 0) and (float(norm) == root or math.isnan(value))
    assert bool(taken) == (frames > 0 and math.isfinite(root) and root <= float(torch.tensor(limit)))
    assert float(optimizer.optimizer.state[parameter]["step"]) == float(taken)


class Lone:
    """As much of megatron-core's optimizer as `update` asks for, around one parameter."""

    def __init__(self, parameter: torch.nn.Parameter, grad: Tensor) -> None:
        parameter.grad = grad
        self.optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True)
        self.chained_optimizers, self.step_with_ready_grads = [self], self.optimizer.step
        self.prepare_grads, self.get_grad_stats_parallel_group = lambda: False, lambda: None
        self.get_main_grads_for_grad_norm = lambda: [parameter.grad]


def test_adam_is_torchs_own_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    # As megatron-core sets them where Apex is installed.
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", True)
    monkeypatch.setattr(optimizer, "Adam", None)
    session = Session()
    inner = session.optimizer.chained_optimizers[0].optimizer
    assert type(inner) is torch.optim.AdamW and all(group["fused"] for group in inner.param_groups)
    session.step(session.rows(0))
    assert session.optimizer.chained_optimizers[0].state_dict()["optimizer"]["param_groups"][0]["step"] == 1.0


def test_averages_follow_taken_steps_only() -> None:
    session = Session()
    shards = [shard.clone() for shard in session.average.shards]
    session.step(session.rows(0))
    for shard, start, now in zip(session.average.shards, shards, session.parameters()):
        torch.testing.assert_close(shard, 0.9 * start + 0.1 * now, rtol=1e-5, atol=1e-7)


def test_numbers_come_later_as_they_were() -> None:
    from megatron_videogpt.train.async_values import AsyncValue, DeviceEvent

    start, values, counts = DeviceEvent(torch.device("cpu")), torch.tensor([1.5, -2.0]), torch.tensor([2**53 + 1])
    later = AsyncValue(values, counts)
    values.zero_()
    counts.zero_()
    assert later.numbers() == [1.5, -2.0, 2**53 + 1]
    assert later.event.since(start) >= 0 and start.since(later.event) <= 0


def test_a_device_is_asked_for_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_videogpt.train.async_values import DeviceEvent

    class Queue:
        """A device that has done `now` milliseconds of work when it is asked to catch up."""

        now, waited = 0.0, 0

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = Queue.now

            def synchronize(self) -> None:
                Queue.waited += 1

            def elapsed_time(self, end: Queue.Event) -> float:
                return end.at - self.at

    monkeypatch.setattr(torch, "get_device_module", lambda device: Queue)
    start = DeviceEvent(torch.device("cuda"))
    Queue.now = 250.0
    end = DeviceEvent(torch.device("cuda"))
    assert Queue.waited == 0
    assert end.since(start) == 0.25 and Queue.waited == 1


def test_gradients_without_counted_frames_are_not_scaled() -> None:
    from megatron_videogpt.platforms.compat import finalize_gradients

    session = Session()
    for count, expected in ((0, 3.0), (4, 0.75)):
        for parameter in session.chunks[0].parameters():
            parameter.main_grad.fill_(3.0)
        finalize_gradients(session.chunks, torch.tensor(count, dtype=torch.int))
        assert all(
            torch.equal(p.main_grad, torch.full_like(p.main_grad, expected)) for p in session.chunks[0].parameters()
        )
