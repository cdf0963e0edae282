"""The networks name and start their parameters themselves."""

from __future__ import annotations

from megatron_videogpt.model.parameters import Table

TABLE = Table(())
