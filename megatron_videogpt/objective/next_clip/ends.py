"""What stands around the decoder: all of `flow_ends`."""

from __future__ import annotations

from ...model.videogpt import Ends
from ..flow_ends import VideoEmbedding, VideoHead
from .parameters import TABLE

ENDS = Ends(VideoEmbedding, VideoHead, TABLE)
