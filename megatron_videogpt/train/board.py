"""TensorBoard's event file of a run.

Written here and not by TensorBoard's own writer, whose thread dies on a full disk with half an event in the file, which
hides all that comes after it from every reader.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .records import Appended, Records


class Board:
    """Numbers and moving pictures, on disk as soon as they are given.

    Args:
        folder: of the event files; each start of a run adds one.
        resume_step: what an interrupted run wrote past it is hidden.
        records: told of what cannot be written.
    """

    def __init__(self, folder: Path, resume_step: int, records: Records) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        purge = resume_step + 1 if resume_step else 0
        session = SessionLog(status=SessionLog.START)
        head = _event(file_version="brain.Event:2") + _event(step=purge, session_log=session)
        before = len(list(folder.glob("events.*")))
        # Readers take the files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{before}"
        self._file = Appended(folder / name, "TensorBoard", records, "event", head)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step by their tags."""
        self._add(step, [{"tag": tag, "simple_value": value} for tag, value in values.items()])

    def moving_picture(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """uint8 ``[F, H, W, 3]`` as an image that moves; TensorBoard's own `add_video` needs the moviepy package."""
        self._add(step, [{"tag": name, "image": _moving_picture(frames, fps)}])

    def close(self) -> None:
        """The last attempt to write what waits."""
        self._file.close()

    def _add(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._file.add(step, _event(step=step, summary=summary))


def _event(**fields: Any) -> bytes:
    """An event as it stands in the file, with its length and checksums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(Event(wall_time=time.time(), **fields).SerializeToString())
    return buffer.getvalue()


def _moving_picture(frames: np.ndarray, fps: float) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
    )
    return Summary.Image(
        height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=buffer.getvalue()
    )
