"""Listings: rows of folders, lists and tables against rows written by hand; keys, templates and conditions; bad rows;
cuts of scenes in numbers.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.prepare.columns import columns_of, meets
from megatron_videogpt.data.prepare.listings import Listing, Row, describe, list_rows, unique_key
from megatron_videogpt.data.prepare.scene_cuts import piece_runs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked at")
    return folder


def rows_of(*sources: Path, **options: Any) -> tuple[list[Row], list[BadVideo]]:
    found = list(list_rows([str(source) for source in sources], Listing(**options)))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadVideo)]


def test_folders_are_read_in_order_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/y.webm", "._b.mp4", ".cache/c.mp4", "notes.txt", "a/b.avi")
    (tmp_path / "link.mov").symlink_to(tmp_path / "b.mp4")
    rows, bad = rows_of(tmp_path)
    assert [row.name for row in rows] == ["a/b.avi", "a/y.webm", "a/z.MKV", "b.mp4", "link.mov"] and not bad
    assert [row.key for row in rows] == ["a_b", "a_y", "a_z", "b", "link"]
    assert [row.suffix for row in rows] == [".avi", ".webm", ".mkv", ".mp4", ".mov"]
    assert [Path(row.path) for row in rows] == [tmp_path / row.name for row in rows]


def test_equal_keys_get_numbers_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.mp4", "one/a.avi", "one/a-2.mp4", "two/a.mp4", "a b.mp4", "a_b.mp4")
    keys = [
        row.key
        for row in rows_of(
            tmp_path / "one", tmp_path / "two", tmp_path / "one/a.mp4", tmp_path / "a b.mp4", tmp_path / "a_b.mp4"
        )[0]
    ]
    assert keys == ["a-2", "a", "a-3", "a-4", "a-5", "a_b", "a_b-2"]


@given(st.lists(st.text(max_size=120), max_size=40))
def test_keys_are_safe_unique_and_repeatable(texts: list[str]) -> None:
    def keys() -> list[str]:
        seen: set[int] = set()
        return [unique_key(text, seen) for text in texts]

    assert keys() == keys() and len(set(keys())) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,99}", key) for key in keys())


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The same table in every format."""
    path = folder / f"table.{kind}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_all_tables_say_the_same(tmp_path: Path, kind: str) -> None:
    table = [
        {"file": "a/x.mp4", "text": 'a "cat", running\nfast', "score": "5.5", "split": "train"},
        {"file": "a/y.mp4", "text": "ein Hund läuft", "score": "4", "split": "train"},
        {"file": "z.mp4", "text": "  ", "score": "10", "split": "test"},
        {"file": "w.mp4", "text": "last", "score": "10", "split": "train"},
    ]
    listing = {"video_column": "file", "caption_column": "text", "where": ("split==train", "score>4.5")}
    rows, bad = rows_of(written(tmp_path, kind, table), **listing)
    assert [row.name for row in rows] == [
        "a/x.mp4",
        "w.mp4",
    ] and not bad  # as numbers 10 > 4.5, as texts it would not be
    assert [describe(row, Listing(**listing), {}) for row in rows] == [
        {"caption": 'a "cat", running\nfast'},
        {"caption": "last"},
    ]
    assert Path(rows[0].path) == tmp_path / "a/x.mp4"


def test_text_lists_take_whole_lines_or_columns(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a b/c 1.mp4\r\n\n  d.mp4  \n")
    assert [row.name for row in rows_of(tmp_path / "plain.txt")[0]] == ["a b/c 1.mp4", "d.mp4"]
    (tmp_path / "split.txt").write_text("Archery/v_1.avi 3\nBiking/v_2.avi\n")
    listing = Listing(list_columns=("video", "class_number"), label_folder=True)
    rows = [row for row in list_rows([str(tmp_path / "split.txt")], listing) if isinstance(row, Row)]
    assert [describe(row, listing, {}) for row in rows] == [{"label": "Archery"}, {"label": "Biking"}]


def test_names_from_templates_are_found_below_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "root/one/id_000007_000017.mp4", "root/two/deep/id_000007_000017.mp4", "root/x_000010_000020.mp4")
    (tmp_path / "t.csv").write_text("id,start,end,label\nid,7,17,jump\nx,10,20,run\ngone,0,10,sit\n")
    options: dict[str, Any] = {
        "video_column": "{id}_{start:0>6}_{end:0>6}.mp4",
        "key_column": "{id}-{start}",
        "root": str(tmp_path / "root"),
        "search": True,
    }
    rows, bad = rows_of(tmp_path / "t.csv", **options)
    assert [(row.name, row.key) for row in rows] == [
        ("one/id_000007_000017.mp4", "id-7"),
        ("x_000010_000020.mp4", "x-10"),
    ]
    assert [describe(row, Listing(**options), {}) for row in rows] == [{"label": "jump"}, {"label": "run"}]
    assert [(error.path, error.kind) for error in bad] == [("gone_000000_000010.mp4", "missing")]


def test_lists_inside_json_are_joined(tmp_path: Path) -> None:
    document = {
        "info": {},
        "videos": [{"video_id": "v1", "split": "train"}, {"video_id": "v2", "split": "train"}, 7, {"split": "train"}],
        "sentences": [
            {"video_id": "v1", "caption": "b"},
            {"video_id": "v9", "caption": "c"},
            {"video_id": "v1", "caption": "a"},
        ],
    }
    (tmp_path / "info.json").write_text(json.dumps(document))
    options = {
        "records": "videos",
        "join": "sentences:video_id:caption",
        "video_column": "{video_id}.mp4",
        "caption_column": "caption",
    }
    rows, bad = rows_of(tmp_path / "info.json", **options)
    assert [describe(row, Listing(**options), {}) for row in rows] == [{"caption": "b", "captions": ["b", "a"]}, {}]
    assert [error.kind for error in bad] == ["metadata", "metadata"]


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "video,caption\na.mp4,x\nb.mp4\nc.mp4,x,y\n../../etc/d.mp4,x\ne.exe,x\n,x\nf.mp4,x\n"
    )
    rows, bad = rows_of(tmp_path / "t.csv")
    assert [row.name for row in rows] == ["a.mp4", "f.mp4"]
    assert [error.kind for error in bad] == ["metadata", "metadata", "unsafe_name", "extension", "metadata"]
    assert bad[0].path == "t.csv:3"
    (tmp_path / "t.jsonl").write_text('{"video": "a.mp4"}\n{"video": \n[1]\n{"file": "b.mp4"}\n{"video": 5}\n')
    rows, bad = rows_of(tmp_path / "t.jsonl")
    assert [row.name for row in rows] == ["a.mp4"] and [error.kind for error in bad] == [
        "metadata",
        "metadata",
        "metadata",
        "extension",
    ]


def test_absolute_paths_stay_below_a_root_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{tmp_path}/in/a.mp4\n/elsewhere/b.mp4\n")
    touch(tmp_path, "in/a.mp4")
    rows, bad = rows_of(tmp_path / "t.txt", root=str(tmp_path / "in"))
    assert [(row.name, row.key) for row in rows] == [("a.mp4", "a")] and [error.kind for error in bad] == [
        "unsafe_name"
    ]
    assert [row.path for row in rows_of(tmp_path / "t.txt")[0]] == [f"{tmp_path}/in/a.mp4", "/elsewhere/b.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "options", "words"),
    [
        ("none.csv", None, {}, "no such file"),
        ("t.csv", "file,caption\n", {}, "no column 'video'"),
        ("t.csv", "video\n", {"caption_column": "text"}, "no column 'text'"),
        ("t.csv", "video\n", {"where": ("split==train",)}, "no column 'split'"),
        ("t.csv", "video\n", {"where": ("split",)}, "COLUMN==VALUE"),
        ("t.csv", "video\n", {"root": "/no/such"}, "no such folder"),
        ("t.csv", "video\n", {"video_column": "{video"}, "template"),
        ("t.csv", "video\n", {"video_column": "{video.__class__}"}, "name of a column"),
        ("t.xyz", "video\n", {}, "--format"),
        ("t.json", "{", {}, "not JSON"),
        ("t.json", '{"videos": [], "sentences": []}', {}, "videos, sentences"),
        ("t.json", '{"videos": []}', {"records": "clips"}, "'clips'"),
        ("t.json", '{"videos": []}', {"records": "videos", "join": "a:b"}, "LIST:COLUMN:VALUE"),
        ("t.parquet", "PAR1", {}, "Parquet"),
    ],
)
def test_what_cannot_be_listed_is_one_line(
    tmp_path: Path, name: str, text: str | None, options: dict[str, Any], words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        rows_of(tmp_path / name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("x==train", "train", True),
        ("x == 1.0", "1", True),
        ("x!=a", "a", False),
        ("x>=0.43", "0.43", True),
        ("x<10", "9", True),
        ("x>2", 10, True),
    ],
)
def test_conditions(condition: str, value: Any, holds: bool) -> None:
    assert meets("name", {"x": value}, (condition,)) is holds


def test_conditions_that_cannot_be_decided_are_bad_rows() -> None:
    for columns in ({"x": "many"}, {}, {"x": None}):
        with pytest.raises(BadVideo) as error:
            meets("name", columns, ("x>2",))
        assert error.value.kind == "metadata"
    assert (
        columns_of("{a}_{b:0>6}.mp4") == ["a", "b"]
        and columns_of("plain name") == ["plain name"]
        and columns_of("") == []
    )


def expected_runs(number: list[int], key: list[bool], cuts: list[int]) -> list[tuple[int, int]]:
    """The rule of `piece_runs`, word by word."""
    runs = []
    for start, end in zip([0, *cuts], [*cuts, max(number) + 1]):
        begins = [
            i
            for i, n in enumerate(number)
            if key[i] and start <= n < end and all(later > n for later in number[i + 1 :])
        ]
        if begins:
            first = begins[0]
            shown = [sorted(number[first:last]) for last in range(first + 1, len(number) + 1)]
            good = [len(s) for s in shown if s[-1] < end and s == list(range(s[0], s[0] + len(s)))]
            if good:
                runs.append((first, first + max(good)))
    return runs


@given(st.data())
def test_pieces_hold_all_frames_from_a_key_frame_on_and_none_of_the_next_scene(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 24))
    number = list(range(length))
    for i in data.draw(st.lists(st.integers(0, max(0, length - 2)), max_size=8)):
        number[i : i + 2] = number[i : i + 2][::-1]
    for i in data.draw(st.lists(st.integers(0, length - 1), max_size=1)):
        number = [-1 if n == number[i] else n - (n > number[i]) for n in number]
    if max(number) < 0:
        return
    key = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(number)), max_size=4))) if max(number) else []
    assert piece_runs(np.array(number, np.int64), np.array(key), cuts) == expected_runs(number, key, cuts)
