"""Video files of a folder, by their names."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError

EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv .y4m".split()
)


def list_videos(folder: str | Path) -> list[Path]:
    """All files with a known video extension, searched recursively, sorted; ValueError when there are none."""
    root = Path(folder)
    if not str(folder):
        raise UserError("data.path is empty: data.source=videos needs a folder of videos")
    if not root.exists():
        raise UserError(f"data.path={folder}: no such folder")
    if not root.is_dir():
        raise UserError(f"data.path={folder}: is a file; give the folder that holds the videos")
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not videos:
        raise UserError(f"data.path={folder}: no videos in it (looked for {', '.join(sorted(EXTENSIONS))})")
    return videos
