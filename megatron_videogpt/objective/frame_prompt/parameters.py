"""The parameters of the network: Video-GPT's but for what makes clean copies of frames.  No PyTorch here: see
`model/parameters.py`.
"""

from __future__ import annotations

from ...config.schema import Config
from ...model.parameters import DECODER, Rule, Table, linear_rules
from ..flow_parameters import HEAD, TIME_TOKEN, patch_shape
from .factorised.options import FACTORISED, variant_of_run
from .factorised.parameters import table_of

TABLE = Table(
    (
        *linear_rules("x_embedder.proj", "embedding.noisy_patch", patch_shape, "xavier", form="patch"),
        *TIME_TOKEN,
        Rule("hint.weight", "embedding.hint", lambda model, channels: (1, model.hidden_size), form="hint"),
        *DECODER,
        *HEAD,
    )
)


def table(config: Config) -> Table:
    """See `objective.build`."""
    return table_of(variant_of_run(config)) if config.objective.network == FACTORISED else TABLE
