"""Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings."""

import os
import sys

from . import signals

# Of this process, not one that it starts: those have its arguments, but another main module when they come here.
_SCRIPT = os.path.basename(getattr(sys.modules.get("__main__"), "__file__", None) or "")

if sys.argv[:1] == ["-m"] or _SCRIPT == "megatron-videogpt":
    # So Python calls a command of which it has not yet found the main module, or it is the console script: either way
    # that module comes later than all below.
    signals.remember()

from .callbacks import found as callback_rules  # noqa: E402
from .codec import rules as codec_rules  # noqa: E402
from .condition import rules as condition_rules  # noqa: E402
from .config.entry_points import enter_outside  # noqa: E402
from .objective.found import enter_objectives  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ["__version__", "callback_rules", "codec_rules", "condition_rules"]

# Options and rules of codecs, conditions and callbacks (by the imports above) and of objectives are known from here on:
# see config/sections.py.
enter_outside("codec")
enter_objectives()
