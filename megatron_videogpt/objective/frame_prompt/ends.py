"""What stands around the decoder: `flow_ends`, with one kind of frame."""

from __future__ import annotations

from functools import partial

from ...model.videogpt import Ends
from ..flow_ends import VideoEmbedding, VideoHead
from .parameters import TABLE

ENDS = Ends(partial(VideoEmbedding, hints=1, clean=False), VideoHead, TABLE)
