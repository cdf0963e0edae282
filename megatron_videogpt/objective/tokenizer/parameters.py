"""How many parameters `check` counts: those of the tokenizer, not of its discriminators.

The networks name and start their parameters themselves (`networks.py`).
"""

from __future__ import annotations

from ...config.schema import Config
from ...model.parameters import Rule, Table
from .sizes import decoder, encoder

SMALLEST = (1, 8, 8)


def table(config: Config) -> Table:
    """See `objective.build`: of both halves how many there are, as one row each."""
    options = config.objective
    sizes = options.width, options.units, len(options.levels), SMALLEST
    rules = []
    for name, layers in (("tokenizer.encoder", encoder(*sizes)), ("tokenizer.decoder", decoder(*sizes))):
        count = sum(layer.parameters for layer in layers)
        rules.append(Rule(name, name, lambda model, channels, count=count: (count,)))  # type: ignore[misc]
    return Table(tuple(rules))
