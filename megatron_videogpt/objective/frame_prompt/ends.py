"""What stands around the decoder: `flow_ends`, with one kind of frame."""

from __future__ import annotations

from functools import partial

from ...config.schema import Config
from ...model.videogpt import Ends
from ..flow_ends import VideoEmbedding, VideoHead
from .factorised.ends import ends_of
from .factorised.options import FACTORISED, variant_of_run
from .parameters import TABLE

ENDS = Ends(partial(VideoEmbedding, hints=1, clean=False), VideoHead, TABLE)


def ends(config: Config) -> Ends:
    """See `objective.build`."""
    return ends_of(variant_of_run(config)) if config.objective.network == FACTORISED else ENDS
