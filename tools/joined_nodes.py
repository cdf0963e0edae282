"""Who has joined a torchrun job that does not start: prints `complete` or `waiting`, then one address a line; nothing when node 0 does not answer.

python tools/joined_nodes.py MASTER_ADDR:MASTER_PORT JOB_ID
"""

from __future__ import annotations

import datetime
import pickle
import sys

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend


def main() -> int:
    host, _, port = sys.argv[1].rpartition(":")
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=5))
        found = C10dRendezvousBackend(store, sys.argv[2]).get_state()
    except (RuntimeError, RendezvousConnectionError):
        return 1
    if found is None:
        return 1
    # torchrun's own agents keep their state so, and unpickle it from the same place every few seconds.
    state = pickle.loads(found[0])  # noqa: S301
    print("complete" if state.complete else "waiting")
    for node in sorted(state.participants):
        print(node.addr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
