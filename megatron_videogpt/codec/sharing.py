"""Which ranks encode: from the configuration alone, without PyTorch (`check` asks)."""

from __future__ import annotations

from ..config.schema import Config
from .geometry import WITHOUT_FOLDER


def shares_encoding(config: Config) -> bool:
    """Whether the ranks of a replica encode its frames together (`data.share_encoding`); where it says `auto`, wherever
    there are several, but not with the codecs that come along: sending frames costs as much as encoding with these.
    """
    asked = config.data.share_encoding
    wanted = config.codec.name not in WITHOUT_FOLDER if asked == "auto" else asked == "on"
    return wanted and config.parallel.model_size > 1


def who_encodes(config: Config) -> str:
    """The same in words, for people."""
    ranks = config.parallel.model_size
    if ranks == 1:
        return "each rank"
    return f"all {ranks} ranks of a replica" if shares_encoding(config) else f"the reading one of {ranks} ranks"
