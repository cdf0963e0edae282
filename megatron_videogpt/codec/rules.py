"""What a configuration must keep to for the sake of its codec."""

from __future__ import annotations

import math

from ..config.derived import frame_side
from ..config.options import value_of
from ..config.problems import Report
from ..config.sections import enter
from ..config.shrink import Shrinking, fewer
from ..errors import UserError
from .geometry import PUBLISHED_GEOMETRY, WITHOUT_FOLDER, expected_geometry
from .options import CodecConfig

SIDE = 4
"""Patches of a shrunk frame's longer side, where it had so many."""


def check_codec(report: Report) -> None:
    """The codec's own options, and frames against its stride."""
    codec = report.config.codec
    report.check_range("at least 1", lambda v: v >= 1, "codec.batch_size")
    if report.sound("codec.path") and codec.name not in WITHOUT_FOLDER and not codec.path:
        report.add(
            "codec.path",
            f"name a local folder when codec.name is {codec.name}",
            'give the folder of its config.json and weights, or use codec.name="tiny", or "tiny_fsq" for tokens',
        )
    check_frames(report)


def check_frames(report: Report) -> None:
    """Frame sides against the codec's stride, the patch size and the position table; part of any codec's rules."""
    config, data = report.config, report.config.data
    try:
        codec = expected_geometry(config.codec)
    except UserError as error:
        option = "codec.path" if hasattr(config.codec, "path") else "codec.name"
        report.add(option, "hold a readable codec", str(error))
        return
    if not report.sound("model.patch_size"):
        return
    cell = codec.spatial_stride * config.model.patch_size
    side = frame_side(config)
    name, unit, why = "data.size_multiple", cell, ""
    if data.source == "physics":
        name, unit, why = "data.physics.size", math.lcm(16, cell), " and of 16"
    if report.sound(name) and value_of(config, name) % unit:
        must = (
            f"be a multiple of the codec's stride {codec.spatial_stride} * model.patch_size "
            f"{config.model.patch_size} = {cell}{why}"
        )
        report.add(name, must, f"use {value_of(config, name) + -value_of(config, name) % unit}")
    source = "data.physics.size" if data.source == "physics" else "data.longest_side"
    if report.sound(source, "model.position_table_size") and side // cell > config.model.position_table_size:
        table = f"model.position_table_size = {config.model.position_table_size}"
        report.add(
            source,
            f"give at most {table} patches of {cell} pixels",
            f"use at most {cell * config.model.position_table_size}, or a larger table",
        )


def shrink_frames(small: Shrinking) -> None:
    """Frames of a few patches a side; videos of the same shapes as before."""
    config, data = small.was, small.was.data
    cell = expected_geometry(config.codec).spatial_stride * config.model.patch_size
    if data.source == "physics":
        small.divide("data.physics.size", SIDE * cell, math.lcm(16, cell))
        return
    side = small.divided("data.longest_side", SIDE * cell, cell)
    small.set("data.size_multiple", fewer(data.size_multiple, side, data.longest_side, multiple=cell))
    multiple = small.config.data.size_multiple
    # Rounding has made the multiple larger by comparison.
    side = max(side, math.ceil(multiple * data.max_aspect))
    small.set("data.longest_side", -(-side // multiple) * multiple)


for name in (*WITHOUT_FOLDER, *PUBLISHED_GEOMETRY):
    enter("codec", name, CodecConfig, check_codec, shrink=shrink_frames)
