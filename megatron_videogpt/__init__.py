"""Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings."""

import sys

from . import signals

if sys.argv[:1] == ["-m"]:
    # So Python calls a command of which it has not yet found the main module, and that comes later than all below.
    signals.remember()

from .callbacks import found as callback_rules
from .codec import rules as codec_rules
from .condition import rules as condition_rules
from .config.entry_points import enter_outside
from .objective.found import enter_objectives
from .version import __version__

__all__ = ["__version__", "callback_rules", "codec_rules", "condition_rules"]

# Options and rules of codecs, conditions and callbacks (by the imports above) and of objectives are known from here on:
# see config/sections.py.
enter_outside("codec")
enter_objectives()
