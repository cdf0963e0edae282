"""What a data set says of a video: its label and caption, read by the process that reads the video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from .bad import BadVideo, shown
from .jobs import Job, read_member
from .plans import Sample, SamplePlan
from .remote import Cache
from .shards.scan import LONGEST_JSON, label_of, parse_json


class Description(Protocol):
    """Where it is written what a video shows; small and picklable."""

    def read(self) -> dict[str, Any]:
        """Fields of `Sample`: label and caption, "" where there is none, or condition; BadVideo when that cannot be
        read.
        """
        ...


@dataclass(frozen=True)
class DescribedJob:
    """A job whose sample also has what its data says of it."""

    job: Job
    description: Description

    @property
    def plan(self) -> SamplePlan:
        """See `Job`."""
        return self.job.plan

    @property
    def label(self) -> str:
        """See `Job`."""
        return self.job.label

    def read(self) -> Sample:
        """See `Job`; the description comes first, since a video is decoded in vain when that is damaged."""
        found = self.description.read()
        return replace(self.job.read(), **found)


@dataclass(frozen=True)
class BesideFile:
    """Of a video file: the folder that it lies in, and the text file beside it.

    label: of the folder; path: of the video.
    """

    label: str
    path: str

    def read(self) -> dict[str, Any]:
        """See `Description`."""
        text = Path(self.path).with_suffix(".txt")
        try:
            with open(text, "rb") as file:
                data = file.read(LONGEST_JSON + 1)
        except FileNotFoundError:
            return {"label": self.label, "caption": ""}
        except OSError as error:
            raise BadVideo(text, f"a caption that cannot be read ({error.strerror or error})", "metadata") from error
        return {"label": self.label, "caption": decoded(shown(text), data)}


@dataclass(frozen=True)
class InShard:
    """Of a sample in a shard: its JSON, and its text where the JSON has no caption.

    url: of the tar file; key: of the sample; meta, text: offset and size in the tar file, size 0 where there is none.
    """

    url: str
    key: str
    meta: tuple[int, int]
    text: tuple[int, int]
    cache: Cache

    def read(self) -> dict[str, Any]:
        """See `Description`."""
        name, found = label_of(self.url, self.key), {}
        if self.meta[1]:
            found = parse_json(name, read_member(self.cache, self.url, self.key, *self.meta))
        caption = _words(name, "caption", found.get("caption"))
        if not caption and self.text[1]:
            caption = decoded(name, read_member(self.cache, self.url, self.key, *self.text))
        return {"label": _words(name, "label", found.get("label")), "caption": caption}


def decoded(name: str, data: bytes) -> str:
    """A caption's text, trimmed; BadVideo where it is none."""
    if len(data) > LONGEST_JSON:
        raise BadVideo(name, f"a caption of more than {LONGEST_JSON} bytes", "metadata")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadVideo(
            name, f"a caption that is not UTF-8 ({error.reason} at byte {error.start})", "metadata"
        ) from error


def _words(name: str, what: str, value: Any) -> str:
    """A JSON value as a label or caption; BadVideo for lists, objects and truth values."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadVideo(name, f"a {what} in its JSON that is no text but {type(value).__name__}", "metadata")
    return str(value).strip()
