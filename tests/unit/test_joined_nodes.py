"""Who has joined is read from a real rendezvous state; anything else in its place is refused."""

from __future__ import annotations

import datetime
import io
import os
import pickle

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState

from tools.joined_nodes import RendezvousState


def test_a_rendezvous_state_is_read() -> None:
    state = _RendezvousState()
    state.participants = {_NodeDesc("10.0.0.2", 7, 0): 0, _NodeDesc("10.0.0.1", 9, 0): 1}
    state.last_heartbeats = {node: datetime.datetime.now(datetime.timezone.utc) for node in state.participants}
    state.deadline = datetime.datetime.now(datetime.timezone.utc)
    found = RendezvousState(io.BytesIO(pickle.dumps(state))).load()
    assert sorted(node.addr for node in found.participants) == ["10.0.0.1", "10.0.0.2"] and not found.complete


def test_another_class_is_refused() -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.getpid, ()

    with pytest.raises(pickle.UnpicklingError, match="getpid"):
        RendezvousState(io.BytesIO(pickle.dumps(Trap()))).load()
