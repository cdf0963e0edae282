"""`scaling fit` on tables and on folders of runs: what it writes, what it leaves out and why, what it refuses."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.toml import config_to_toml
from megatron_videogpt.scaling.law import Law
from megatron_videogpt.scaling.points import SIZES
from megatron_videogpt.scaling.runs import read_run

LAW = Law(SIZES, 0.05, (2.0, 3.0), (0.31, 0.24))
TOKENS = 42
"""Of a sample of 4 frames of 32x32 pixels in 4 clips: 4 noisy and 3 clean blocks of 4 patches and 2 more."""


def fit(*arguments: object) -> int:
    return main(["scaling", "fit", "--bootstrap", "40", *map(str, arguments)])


def options(width: int, steps: int) -> dict[str, Any]:
    """Larger ones in another layout, whose ranks encode together."""
    sizes = {"num_layers": 2, "hidden_size": width, "ffn_hidden_size": 2 * width, "num_attention_heads": 4}
    encoding = "on" if width > 32 else "off"
    return {
        "model": sizes,
        "codec": {"name": "tiny"},
        "data": {"frames": 4, "clips": [4, 4], "physics": {"size": 32}, "share_encoding": encoding},
        "optimizer": {"schedule": "wsd", "warmup_steps": 2},
        "train": {"steps": steps, "global_batch_size": 4},
    }


def layers(width: int) -> int:
    """Parameters of the decoder, by hand."""
    return 2 * (4 * width**2 + 3 * width * 2 * width + 2 * width) + width


def write_run(folder: Path, values: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    values["train"]["output"] = str(folder)
    (folder / "config.toml").write_text(config_to_toml(config_from_dict(values)), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def loss(width: int, steps: int, noise: float = 1.0) -> float:
    return float(LAW.loss(np.array([layers(width), 4 * TOKENS * steps]))) * noise


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve runs of a known law, one that diverged and one that is not finished."""
    root, random = tmp_path_factory.mktemp("ladder"), np.random.default_rng(0)
    for width in (16, 32, 64, 128):
        for steps in (50, 200, 800):
            end = loss(width, steps, float(np.exp(0.002 * random.standard_normal())))
            lines = [{"step": step, "validation_loss": 2 * end} for step in (0, steps // 2)]
            last = {"step": steps, "validation_loss": end, "validation_loss_t0.0-0.5": end / 2}
            # The loss by place and by history, and what is not known exactly, are no levels.
            last |= {"validation_frame_loss_0-1": end, "validation_history_loss_2-3": end}
            last |= {"validation_se_loss": end / 100, "validation_se_loss_t0.0-0.5": end / 80}
            write_run(root / f"w{width}_s{steps}", options(width, steps), [*lines, {"step": 1, "loss": 2.0}, last])
    write_run(root / "diverged", options(32, 100), [{"step": 100, "validation_loss": None}])
    write_run(root / "killed", options(32, 100), [{"step": 60, "validation_loss": 0.5}])
    return root


def test_a_ladder_of_runs_is_fitted(ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert fit(ladder, "--hold-out", 1, "--parameters", "decoder", "--output", out) == 0
    printed = capsys.readouterr().out
    assert "dropped: diverged: diverged: validation_loss is no finite number" in printed
    assert "dropped: killed: not finished: at step 60 of 100" in printed
    assert "held out: w128_s800: predicted " in printed and "inside (Huber)" in printed
    found = json.loads((out / "fit.json").read_text(encoding="utf-8"))
    assert found["points"] == {"fitted": 11, "held_out": 1, "dropped": 2}
    for method in ("huber", "projection"):
        one = found["methods"][method]
        for name, value in (("alpha", 0.31), ("beta", 0.24)):
            low, high = one["bootstrap"][name]
            assert low < value < high and one["numbers"][name] == pytest.approx(value, rel=0.25)
    for guess in found["predictions"]:
        assert guess["inside"] and guess["predicted"] == pytest.approx(guess["measured"], rel=0.02)
        assert guess["error"] == pytest.approx(guess["predicted"] / guess["measured"] - 1)
    for method, one in found["methods"].items():
        # Closed forms along the frontier: N ~ C^a, and L - E ~ C^-c.
        numbers, rows = one["numbers"], found["frontier"][method]
        for name, exponent in (("N", numbers["a"]), ("D", 1 - numbers["a"])):
            assert rows[2][name] / rows[0][name] == pytest.approx(100**exponent, rel=1e-6)
        assert (rows[0]["loss"] - numbers["E"]) / (rows[2]["loss"] - numbers["E"]) == pytest.approx(100 ** numbers["c"])
        assert all(row["loss_interval"][0] < row["loss"] < row["loss_interval"][1] for row in rows)
    assert list(found["levels"]) == ["loss_t0.0-0.5"]
    ((whole, *_), (half,)) = (found["predictions"], found["levels"]["loss_t0.0-0.5"]["predictions"])
    assert half["name"] == whole["name"] and half["measured"] == pytest.approx(whole["measured"] / 2)
    assert f"| {half['name']}, loss_t0.0-0.5 | " in (out / "report.md").read_text(encoding="utf-8")
    with open(out / "points.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["w64_s200"]["N"]) == layers(64) and float(rows["w64_s200"]["D"]) == 4 * TOKENS * 200
    assert rows["killed"]["state"] == "dropped" and float(rows["w64_s200"]["flops"]) > 0
    for name, share in (("se_loss", 100), ("se_loss_t0.0-0.5", 80)):
        assert float(rows["w64_s200"][name]) == pytest.approx(float(rows["w64_s200"]["loss"]) / share)
        assert rows["killed"][name] == ""
    assert found["standard_errors"]["w64_s200"] == float(rows["w64_s200"]["se_loss"])
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert (settings["hold_out"], settings["replicates"], settings["parameters"]) == (1, 40, "decoder")
    for name in ("frontier", "residuals", "isoflop", "loss_curves"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "N counts the decoder's layers and its last norm alone" in text and f"Read from `{ladder}`." in text
    for part in ("not finished: at step 60 of 100", "## Held-out runs", "bootstrap 95%", "![frontier](frontier.png)"):
        assert part in text
    assert "loss of 12 of 12 points has a standard error of its own, 1 to 1 % of it" in " ".join(text.split())
    # What it wrote it can read.
    assert fit(out / "points.csv", "--output", tmp_path / "again") == 0
    assert "dropped: killed: loss is no finite number (nan)" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "fit.json").read_text(encoding="utf-8"))
    assert again["standard_errors"] == found["standard_errors"]


def test_a_run_of_several_decays_has_a_point_for_each(tmp_path: Path) -> None:
    values = options(32, 40)
    values["optimizer"] = {"schedule": "wsd_s", "warmup_steps": 2, "lr_wsd_decay_ends": [10, 20, 40]}
    lines = [{"step": step, "validation_loss": 1 / step} for step in (10, 15, 40)]
    run = read_run(write_run(tmp_path / "run", values, lines))
    assert [(point.name, point.steps, point.batch) for point in run.points] == [
        (f"run@{step}", step, 4 * TOKENS) for step in (10, 20, 40)
    ]
    assert [point.loss for point in run.points if not point.dropped] == [0.1, 0.025]
    assert run.points[1].dropped == "no validation_loss at step 20 (eval.every)"
    assert run.tokens.tolist() == [4 * TOKENS * step for step in (10, 15, 40)]


def write_table(path: Path, rows: list[tuple[Any, ...]], head: str = "name,N,D,loss") -> Path:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def good(sizes: tuple[float, ...] = (1e6, 1e7, 1e8), ratios: tuple[float, ...] = (5, 20, 80)) -> list[tuple[Any, ...]]:
    return [(f"{n:.0e} x {r:g}", n, n * r, float(LAW.loss(np.array([n, n * r])))) for n in sizes for r in ratios]


def test_numbers_that_are_none_are_dropped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        ("a", 1e6, 1e7, "nan"),
        ("b", -1e6, 1e7, 1.0),
        ("c", 1e6, 0, 1.0),
        ("d", "large", 1e7, 1.0),
        ("e", 1e6, 1e7, -1),
    ]
    assert (
        fit(write_table(tmp_path / "t.csv", bad + good()), "--exclude", "1e+08 x 80", "--output", tmp_path / "o") == 0
    )
    printed = capsys.readouterr().out
    for line in (
        "dropped: a: loss is no finite number (nan)",
        "dropped: b: N = -1e+06 is not above 0",
        "dropped: c: D = 0 is not above 0",
        "dropped: d: N is no finite number (nan)",
        "dropped: e: loss = -1 is not above 0",
        "dropped: 1e+08 x 80: --exclude",
    ):
        assert line in printed


def test_a_table_with_steps_and_batch_gets_their_law_too(tmp_path: Path) -> None:
    rows = [
        (n, s * b * 1e3, s, b, 0.1 + 2 * n**-0.3 + 5 * s**-0.4 + 0.5 * b**-0.6)
        for n in (1e6, 1e7, 1e8)
        for s in (1e3, 5e3, 2e4)
        for b in (8, 32, 256)
    ]
    assert fit(write_table(tmp_path / "t.csv", rows, "N,D,S,b,loss"), "--output", tmp_path / "o") == 0
    found = json.loads((tmp_path / "o" / "fit.json").read_text(encoding="utf-8"))["steps_and_batch"]["methods"]
    expected = {"E": 0.1, "A": 2, "B": 5, "C": 0.5, "alpha": 0.3, "beta": 0.4, "gamma": 0.6}
    assert found["projection"]["numbers"] == pytest.approx(expected, rel=5e-3)
    assert "taken from its abstract" in " ".join((tmp_path / "o" / "report.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("rows", "head", "line"),
    [
        (good()[:5], "name,N,D,loss", "5 points are too few for a law of 5 numbers; give at least 6 (fitted: 5 points"),
        (
            good(ratios=(20,), sizes=tuple(10.0**k for k in range(3, 11))),
            "name,N,D,loss",
            "the points are collinear: N fol",
        ),
        (
            good(sizes=(1e6, 1e7), ratios=(5, 20, 80, 99)),
            "name,N,D,loss",
            "N has 2 different values; an exponent needs",
        ),
        (
            good(),
            "name,size,D,loss",
            "has no column N; its first line is 'name,size,D,loss', and the columns are N (para",
        ),
        (good(), "name,N,tokens,loss", "has no column D or C; "),
        ([*good(), ("x", 1e6, 1e7)], "name,N,D,loss", "line 11: has 3 cells, and the first line 4 names"),
        (
            [*good(), ("low", 3e7, 1e9, 1e-3)],
            "name,N,D,loss",
            "low: its loss 0.001 is below E of the other points, which is 0.0",
        ),
        ([*good(), *good()[:1]], "name,N,D,loss", "1e+06 x 5: two points have this name"),
    ],
)
def test_tables_that_say_nothing_are_refused_in_a_line(
    rows: list[tuple[Any, ...]], head: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(write_table(tmp_path / "t.csv", rows, head), "--output", tmp_path / "o") == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and line in error and not (tmp_path / "o").exists()


def test_runs_that_cannot_be_compared_are_refused_in_a_line(
    ladder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, foreign, empty = options(32, 100), tmp_path / "foreign", tmp_path / "empty"
    other["eval"] = {"samples": 7}
    write_run(tmp_path / "other", other, [{"step": 100, "validation_loss": 0.5}])
    earlier = write_run(tmp_path / "earlier", options(32, 100), [{"step": 100, "validation_loss": 0.5}]) / "config.toml"
    lines = earlier.read_text(encoding="utf-8").splitlines(keepends=True)
    earlier.write_text("".join(line for line in lines if not line.startswith('levels = "')), encoding="utf-8")
    write_run(foreign, options(32, 100), [])
    (foreign / "config.toml").write_text("[trainer]\nmax_epochs = 3\n[modle]\n", encoding="utf-8")
    write_run(empty, options(32, 100), [])
    write_run(tmp_path / "words", options(32, 100), [{"step": 100, "validation_loss": "low"}])
    (write_run(tmp_path / "gone", options(32, 100), []) / "metrics.jsonl").unlink()
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)))
    table = write_table(tmp_path / "t.csv", good())
    low = write_table(tmp_path / "low.csv", [*good(), ("below", 1e9, 1e12, 0.01)])
    for arguments, line in (
        ((ladder, tmp_path / "other"), "eval.samples is 7 here and 64 there; leave one of them out, or train it"),
        ((ladder, tmp_path / "earlier"), 'eval.levels is "independent" here and "stratified" there; leave one of'),
        ((foreign,), "config.toml: not a run of this release: "),
        ((empty,), "metrics.jsonl: has no line of a run's numbers; give the folder"),
        ((tmp_path / "words",), 'metrics.jsonl: validation_loss at step 100 is "low", not a number; give the'),
        ((tmp_path / "gone",), "metrics.jsonl: No such file or directory"),
        ((binary,), "binary.csv: "),
        ((tmp_path / "nowhere",), "there is no such folder or table; give folders of runs"),
        ((tmp_path / "nowhere.csv",), "nowhere.csv: No such file or directory"),
        ((ladder, table), "runs and tables cannot be fitted together"),
        ((low, "--hold-out", 1), "below: its loss 0.01 is below the fitted E = 0.05"),
        ((ladder, "--hold-out", 12), "--hold-out 12: leaves none of the 12 points"),
        ((table, "--exclude", "nobody"), "--exclude nobody: no point has this name; names are 1e+06 x 5, "),
        ((table, "--output", table), "is a file, not a folder"),
    ):
        assert fit(*arguments, *([] if "--output" in arguments else ["--output", tmp_path / "o"])) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert line in error
    with pytest.raises(SystemExit):
        fit(table, "--level", "95")
    assert "'95': must be above 0 and below 1, for example 0.95" in capsys.readouterr().err
