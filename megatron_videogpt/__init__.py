"""Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings."""

# Each enters the options and rules of what it brings: see config/sections.py.
from .codec import rules as codec_rules
from .objective.next_clip import options as next_clip_options
from .version import __version__

__all__ = ["__version__", "codec_rules", "next_clip_options"]
