"""Who has joined a torchrun job that does not start: prints `complete` or `waiting`, then one address a line; nothing
when node 0 does not answer.

python tools/joined_nodes.py MASTER_ADDR:MASTER_PORT JOB_ID
"""

from __future__ import annotations

import argparse
import datetime
import io
import pickle
import sys
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

ALLOWED = {
    ("torch.distributed.elastic.rendezvous.dynamic_rendezvous", "_RendezvousState"),
    ("torch.distributed.elastic.rendezvous.dynamic_rendezvous", "_NodeDesc"),
    *(("datetime", name) for name in ("datetime", "timedelta", "timezone")),
}
"""What torchrun's agents put into their state."""


class RendezvousState(pickle.Unpickler):
    """Reads the state that torchrun's agents keep pickled in their store, and no other class: whoever reaches the port
    can write there.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The class that a pickle asks for; UnpicklingError for any that is not in `ALLOWED`."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into a rendezvous state")
        return super().find_class(module, name)


def main() -> int:
    """Print who has joined; exit code 1 when node 0 does not answer, or with something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", metavar="MASTER_ADDR:MASTER_PORT", help="where node 0 waits for the others")
    parser.add_argument("job", metavar="JOB_ID", help="the same on all nodes")
    args = parser.parse_args()
    host, _, port = args.endpoint.rpartition(":")
    if not port.isdigit():
        parser.error(f"{args.endpoint}: expected an address and a port, such as 10.0.0.1:29500")
    try:
        store = TCPStore(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=5))
        found = C10dRendezvousBackend(store, args.job).get_state()
    except (RuntimeError, RendezvousConnectionError):
        return 1
    if found is None:
        return 1
    try:
        state = RendezvousState(io.BytesIO(found[0])).load()
    except pickle.UnpicklingError as error:
        print(error, file=sys.stderr)
        return 1
    print("complete" if state.complete else "waiting")
    for node in sorted(state.participants):
        print(node.addr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
