"""Options of `data prepare`."""

from __future__ import annotations

import argparse
import os

from ...config import paths
from .listings import Listing
from .run import Options
from .tables import FORMATS

TIMEOUT = 600.0  # seconds
SCENES_TIMEOUT = 7200.0  # seconds; to find scenes, every frame is decoded


def add_options(root: argparse.ArgumentParser) -> None:
    """All of them; defaults are those of `Listing` and `Options`."""
    root.add_argument(
        "sources", nargs="+", type=paths.place, metavar="SRC", help="folders, videos, .tar shards, lists, tables"
    )
    root.add_argument(
        "--output",
        type=paths.path,
        required=True,
        metavar="DIR",
        help="folder for the shards, new or of the same command before",
    )
    root.add_argument(
        "--recipe",
        type=paths.path,
        metavar="FILE.toml",
        help="defaults of the options below for a published data set, from examples/datasets",
    )
    for add in (_what_to_read, _what_to_keep, _how_to_write):
        add(root)


def _what_to_read(root: argparse.ArgumentParser) -> None:
    listing = Listing()
    group = root.add_argument_group("what to read (a column may also be a template such as '{video_id}.mp4')")
    group.add_argument(
        "--format",
        default="auto",
        choices=["auto", *dict.fromkeys(FORMATS.values())],
        help="of lists and tables whose names do not tell",
    )
    group.add_argument(
        "--video-column",
        default=listing.video_column,
        metavar="COLUMN",
        help="column with the path (default: %(default)s)",
    )
    group.add_argument(
        "--caption-column",
        default="",
        metavar="COLUMN",
        help="column with the caption, or a list of captions (default: caption, if there)",
    )
    group.add_argument(
        "--label-column", default="", metavar="COLUMN", help="column with the class (default: label, if there)"
    )
    group.add_argument(
        "--label-folder",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the class is the name of the video's folder",
    )
    group.add_argument(
        "--key-column",
        default="",
        metavar="COLUMN",
        help="column for the keys in the shards (default: the path without its extension)",
    )
    group.add_argument(
        "--root",
        type=paths.place,
        default="",
        metavar="FOLDER",
        help="where paths in lists and tables start (default: the folder of the table)",
    )
    group.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="find videos by their file names anywhere below --root",
    )
    group.add_argument(
        "--sidecars",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="NAME.json and NAME.txt beside a video are its columns",
    )
    group.add_argument(
        "--list-columns",
        default=["video"],
        type=str.split,
        metavar="NAMES",
        help="of a .txt list divided by blanks, such as 'video label' (default: whole lines)",
    )
    group.add_argument("--records", default="", metavar="NAME", help="name of the list of videos inside a .json")
    group.add_argument(
        "--join",
        default="",
        metavar="LIST:COLUMN:VALUE",
        help="for .json: collect VALUE of another list's objects with the same COLUMN",
    )
    group.add_argument(
        "--where",
        default=[],
        action="append",
        metavar="CONDITION",
        help="only videos with COLUMN==VALUE (or != >= <= > <); may be repeated",
    )
    group.add_argument(
        "--limit", type=int, default=0, metavar="N", help="only the first N videos of the listing (default: all)"
    )


def _what_to_keep(root: argparse.ArgumentParser) -> None:
    ours = Options(())
    group = root.add_argument_group("what to keep")
    group.add_argument(
        "--min-side",
        type=int,
        default=ours.min_side,
        metavar="PIXELS",
        help="shortest side (default: %(default)s, as data.min_side)",
    )
    group.add_argument(
        "--max-aspect",
        type=float,
        default=ours.max_aspect,
        metavar="RATIO",
        help="of the sides (default: %(default)s, as data.max_aspect)",
    )
    group.add_argument(
        "--min-frames",
        type=int,
        default=ours.min_frames,
        metavar="N",
        help="frames of a video or scene (default: %(default)s)",
    )
    group.add_argument(
        "--max-video-mb",
        type=float,
        default=ours.limits.bytes / 1e6,
        metavar="MB",
        help="larger files are not read (default: %(default)g)",
    )
    group.add_argument(
        "--max-video-frames", type=int, default=ours.limits.frames, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument(
        "--max-megapixels",
        type=float,
        default=ours.limits.pixels / 1e6,
        metavar="N",
        help="of a picture (default: %(default)g)",
    )
    group.add_argument(
        "--scenes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="cut into scenes, without sound (needs scenedetect-headless)",
    )
    group.add_argument(
        "--scene-threshold",
        type=float,
        default=ours.scene_threshold,
        metavar="N",
        help="change that is a cut, 0..255 (default: %(default)g)",
    )


def _how_to_write(root: argparse.ArgumentParser) -> None:
    ours = Options(())
    group = root.add_argument_group("how to write (workers and timeout may differ when a run is continued)")
    group.add_argument(
        "--shard-mb",
        type=float,
        default=ours.shard_mb,
        metavar="MB",
        help="size at which a shard is closed, 10^6 bytes (default: %(default)g)",
    )
    group.add_argument(
        "--shard-count",
        type=int,
        default=ours.shard_count,
        metavar="N",
        help="videos after which a shard is closed (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; 0: in this one (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help=f"for one video, which is then given up (default: {TIMEOUT:g}, with --scenes {SCENES_TIMEOUT:g})",
    )
