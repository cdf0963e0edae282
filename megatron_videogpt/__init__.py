"""Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings."""

from .codec import rules as codec_rules
from .objective.found import enter_objectives
from .version import __version__

__all__ = ["__version__", "codec_rules"]

# Options and rules of codecs (by the import above) and objectives are known from here on: see config/sections.py.
enter_objectives()
