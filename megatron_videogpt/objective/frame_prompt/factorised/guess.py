"""`config.json` of a file that has none, from the shapes of its tensors and from what the user says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....codec.options import CodecConfig
from ....errors import UserError
from ...released import Shapes
from .settings import CHUNK, TEXT_CHUNK, said

HEADS = {1152: 16}
"""Of the released networks, by their width: their files do not say."""
OPEN = (
    "num_heads",
    "chunk",
    "input_size",
    "max_tpe_len",
    "spatial_attn_enhance",
    "relative_tpe_mode",
    "is_causal",
    "space_scale",
    "time_scale",
)
"""What a file does not say, or not in every case."""
RELEASED: dict[str, Any] = {
    "spatial_attn_enhance": "prev_frames_3",
    "relative_tpe_mode": "cyclic",
    "is_causal": True,
    "space_scale": 1.0,
    "time_scale": 1.0,
}
"""What goes without saying."""
SIZE, PLACES = [32, 32], {0: 33, 1: 65}
"""Of what starts from Open-Sora 1.0: latents of 256 x 256 pixels, and the longest prompt with its chunk, without text
and with (reference README section 9).
"""


def guessed(shapes: Shapes, codec: CodecConfig, told: Mapping[str, str], where: str) -> dict[str, Any]:
    """See `Released`: the file tells its sizes, and what it has layers and tables for; `OPEN` may be said."""
    words = said(told, OPEN)
    found = _sizes(shapes, words, where)
    enhance = "blocks.0.attn_cf.qkv.weight" in shapes
    found |= {
        "input_size": words.get("input_size") or _input_size(shapes, found["patch_size"][-1], where),
        "max_tpe_len": words.get("max_tpe_len") or _places(shapes, where),
        "temp_extra_in_channels": _mask_channels(shapes, found["hidden_size"]),
    }
    found |= RELEASED | ({} if enhance else {"spatial_attn_enhance": None}) | words
    found["chunk"] = words.get("chunk", TEXT_CHUNK if found["caption_channels"] else CHUNK)
    return {"model_type": "frame_prompt", **found}


def started(shapes: Shapes, told: Mapping[str, str], where: str) -> dict[str, Any]:
    """`config.json` of the network that starts from Open-Sora 1.0's: the released one with prefix enhancement and mask
    channel, with text unless caption_channels=0 is said, in latents of 32 x 32 unless input_size is.
    """
    words = said(told, (*OPEN, "temp_extra_in_channels", "caption_channels"))
    found = _sizes(shapes, words, where)
    width = found["caption_channels"]
    if words.get("caption_channels", width) not in (0, width):
        raise UserError(
            f"--published caption_channels={words['caption_channels']}: {where} has {width or 'none'}; expected that, "
            "or 0 for a network without text"
        )
    if not words.get("caption_channels", width):
        found |= {"caption_channels": 0, "model_max_length": 0}
    texts = bool(found["caption_channels"])
    found |= {"input_size": SIZE, "max_tpe_len": PLACES[texts], "temp_extra_in_channels": 1}
    found |= {"chunk": TEXT_CHUNK if texts else CHUNK, **RELEASED, **words}
    return {"model_type": "frame_prompt", **found}


def _sizes(shapes: Shapes, words: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What keys and shapes tell of every network; UserError, one line, where they are of none."""
    try:
        width, channels, _, patch, other = shapes["x_embedder.proj.weight"]
        inner, _ = shapes["blocks.0.mlp.fc1.weight"]
        tokens, texts = shapes.get("y_embedder.y_embedding", (0, 0))
    except (KeyError, ValueError):
        raise UserError(
            f"{where}: holds no factorised network of frame as prompt: expected keys such as x_embedder.proj.weight "
            f"[D, C, 1, p, p] and blocks.0.mlp.fc1.weight, found {next(iter(sorted(shapes)), 'nothing')!r:.80}"
        ) from None
    heads = words.get("num_heads") or HEADS.get(width, 0)
    if not heads or width % heads:
        raise UserError(f"{where}: width {width}; say into how many heads it divides: --published num_heads=N")
    return {
        "in_channels": channels,
        "patch_size": [1, patch, other],
        "hidden_size": width,
        "depth": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        "num_heads": heads,
        "mlp_ratio": inner / width,
        "pred_sigma": True,
        "caption_channels": texts,
        "model_max_length": tokens,
    }


def _input_size(shapes: Shapes, patch: int, where: str) -> list[int]:
    """Rows and columns of a latent frame: of the one tensor of that shape, or of a square table of patches."""
    whole, table = shapes.get("bov_token", ()), shapes.get("pos_embed", ())
    if len(whole) == 3:
        return list(whole[1:])
    side = math.isqrt(table[1]) if len(table) == 3 else 0
    if not side or side**2 != table[1]:
        raise UserError(
            f"{where}: does not tell the size of its latents: say it, such as --published input_size=32x32 of 256 x "
            "256 pixels"
        )
    return [patch * side, patch * side]


def _places(shapes: Shapes, where: str) -> int:
    table = shapes.get("pos_embed_temporal", ())
    if len(table) != 3:
        raise UserError(
            f"{where}: has no table of temporal positions; say how long it is, such as --published max_tpe_len=33 of "
            "prompts up to 25 frames and chunks of 8"
        )
    return table[1]


def _mask_channels(shapes: Shapes, width: int) -> int:
    """Channels beside the features of what enters the first attention in time; another number than 0 or 1 is refused
    where the fields are checked.
    """
    merge = shapes.get("blocks.0.attn_temp_pre_merge.weight", (0, width))
    return merge[-1] - width
