"""Records on a disk that takes no more: a limit on the size of files stands for it, and /dev/full for output."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_videogpt.config.schema import Config, LoggingConfig
from megatron_videogpt.data.bad import BadVideo, record, recorded
from megatron_videogpt.data.remote import Cache
from megatron_videogpt.train.logs import open_log, start_logs
from megatron_videogpt.train.metrics import MetricsWriter
from megatron_videogpt.train.records import Records
from megatron_videogpt.train.screen import Kept

PLAIN = Config(logging=LoggingConfig(tensorboard=False))
FRAMES = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed goes into no file, which would be limited as well."""


@contextlib.contextmanager
def no_room(size: int = 0) -> Iterator[None]:
    """No file grows beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps(folder: Path) -> list[int]:
    """Of every line of metrics.jsonl; none may be cut."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_wait_for_room_are_written_whole_and_in_order_and_told_once(tmp_path, capsys):
    records = Records()
    writer = MetricsWriter(tmp_path, PLAIN, True, records=records)
    for step in (1, 2, 3):
        # A line has 28 bytes: the second one is cut.
        with no_room(40):
            writer.log(step, {"loss": 0.123456})
        assert steps(tmp_path) == [1]
    writer.log(4, {"loss": 0.123456})
    assert steps(tmp_path) == [1, 2, 3, 4]
    writer.close()
    said = capsys.readouterr().err
    assert said.startswith("warning: metrics.jsonl: File too large; training goes on") and said.count("\n") == 1
    assert records.summary() == "written late, but whole: metrics.jsonl"


def test_what_still_waits_at_the_end_is_told_with_its_steps(tmp_path, capsys):
    with no_room(40), Records(3) as records:
        writer = MetricsWriter(tmp_path, PLAIN, True, records=records)
        for step in range(1, 6):
            writer.log(step, {"loss": 0.123456})
        writer.close()
        writer.curve("loss", ())
    assert steps(tmp_path) == [1] and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "warning (rank 3): lost, since it could not be written: metrics.jsonl 4 lines (steps 2 to 5), loss.png 1 file"
    )


def test_no_more_waits_than_memory_may_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_videogpt.train.records.WAITING", 100)
    records = Records()
    writer = MetricsWriter(tmp_path, PLAIN, True, records=records)
    with no_room():
        for step in range(1, 9):
            writer.log(step, {"loss": 0.123456})
    writer.close()
    assert steps(tmp_path) == [6, 7, 8] and "metrics.jsonl 5 lines (steps 1 to 5)" in records.summary()


def test_a_resume_without_room_drops_old_lines_or_keeps_them_and_says_so(tmp_path, capsys):
    text = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 6))
    for middle, left in (("", [1, 2]), ('{"step": 9, "loss": 1.0}\n', [9, 1, 2, 3, 4, 5])):
        (tmp_path / "metrics.jsonl").write_text(middle + text)
        records = Records()
        with no_room(10):
            writer = MetricsWriter(tmp_path, PLAIN, True, resume_step=2, records=records)
            writer.log(3, {"loss": 2.0})
            writer.close()
        # What is to stay is the beginning of the file, or is not; then it would have to be written again.
        assert steps(tmp_path) == left and len(list(tmp_path.iterdir())) == 1
        assert "metrics.jsonl 1 line (step 3" in records.summary()
        assert ("what an interrupted run left is still in it" in records.summary()) == bool(middle)


def test_tensorboard_reads_all_that_was_written_before_and_after(tmp_path):
    records = Records()
    writer = MetricsWriter(tmp_path, Config(), True, records=records)
    writer.log(1, {"loss": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    # Half an event.
    with no_room(file.stat().st_size + 10):
        writer.log(2, {"loss": 2.0})
        writer.video(2, "prediction", FRAMES)
    writer.log(3, {"loss": 3.0})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [event.step for event in events.Images("prediction")] == [2]
    assert "videos 1 file (step 2)" in records.summary() and list((tmp_path / "videos").iterdir()) == []


def test_faults_of_the_program_are_no_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    writer = MetricsWriter(tmp_path, PLAIN, True)
    with pytest.raises(IsADirectoryError):
        writer.log(1, {"loss": 1.0})


def test_weights_and_biases_without_room(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = types.SimpleNamespace(id="abc", log=full, finish=full)
    monkeypatch.setitem(__import__("sys").modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    records, config = Records(), Config(logging=LoggingConfig(tensorboard=False, wandb=True))
    with no_room():
        writer = MetricsWriter(tmp_path, config, True, records=records)
        writer.log(1, {"loss": 1.0})
    writer.log(2, {"loss": 1.0})
    writer.close()
    assert "wandb_id.txt 1 file" in records.summary() and "Weights & Biases 3 calls (steps 1 to 2)" in records.summary()
    assert steps(tmp_path) == [1, 2]


def test_names_of_rejected_and_skipped_samples_without_room(tmp_path):
    from megatron_videogpt.train.health import record_skipped
    from megatron_videogpt.train.rejected import writes_rejected

    records, file = Records(), tmp_path / "rejected.jsonl"
    write = writes_rejected(records)
    write(file, BadVideo("a", "no video"))
    with no_room(file.stat().st_size + 5):
        write(file, BadVideo("b", "no video"))
        record_skipped(tmp_path, 7, 1.0, 0.5, [{"name": "c", "key": ""}], records)
    record(file, BadVideo("d", "no video"))
    # Half a line may be another process's: it stays.
    assert recorded(file) == {"a", "d"} and len(file.read_text().splitlines()) == 3
    assert "rejected.jsonl 1 name, skipped.jsonl 1 line (step 7)" in records.summary()


def test_a_cache_without_room_is_read_around_and_told_once(tmp_path, caplog):
    fsspec.filesystem("memory").pipe("/records/a", b"abcdef")
    cache = Cache(tmp_path, 100)
    with no_room():
        assert [cache.read("memory://records/a", start, 3) for start in (0, 3)] == [b"abc", b"def"]
    (said,) = caplog.messages
    assert str(tmp_path) in said and "File too large" in said


def test_a_log_file_without_room(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_00001.log").symlink_to("/dev/full")
    records = Records(1)
    start_logs(tmp_path, 1, records)
    logging.captureWarnings(False)
    open_log()
    logging.getLogger("x").warning("said")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"warning (rank 1): logs/rank_00001.log: {said[0].split(': ')[2]}"]
    assert "No space left" in said[0] and "logs/rank_00001.log" in records.summary()


def test_output_without_room_is_counted_by_line_and_goes_on_at_a_new_one(tmp_path, capsys):
    records, path = Records(), tmp_path / "output"
    with path.open("wb") as file:
        output = Kept(file.fileno(), "standard output", records)
        output.write(b"one\n")
        with no_room(6):
            assert output.write(b"two\n") == 4
            assert output.write(b"three\n") == 6
        output.write(b"four\n")
    assert path.read_bytes() == b"one\ntw\nfour\n"
    assert records.summary() == "lost, since it could not be written: standard output 2 lines"
    assert capsys.readouterr().err.count("standard output") == 1


def test_output_whose_reader_has_ended_is_lost_and_no_error(capsys):
    records, (reader, writer) = Records(), os.pipe()
    os.close(reader)
    assert Kept(writer, "standard output", records).write(b"one\ntwo\n") == 8
    os.close(writer)
    assert records.summary() == "lost, since it could not be written: standard output 2 lines"
    assert "Broken pipe; training goes on" in capsys.readouterr().err
