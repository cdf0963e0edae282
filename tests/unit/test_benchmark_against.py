"""Two commits compared: which options go on, who is measured when, the table, and commits that do not exist."""

from __future__ import annotations

import pytest

from megatron_videogpt.errors import UserError
from tools.measuring import against
from tools.measuring.against import ROOT, compare, passed_on, table, turns

from_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


def test_only_options_that_every_commit_knows_go_on() -> None:
    given = [
        "run.toml",
        "--against",
        "66a66d2",
        "a.b=1",
        "--rounds=2",
        "--steps",
        "20",
        "--json",
        "out.json",
        "--processes",
        "2",
        "--fit",
        "a.c=2",
    ]
    assert passed_on(given) == ["run.toml", "a.b=1", "--steps", "20", "--fit", "a.c=2"]


def test_turns_cancel_a_steady_drift() -> None:
    order = list(turns(4))
    assert order == ["this", "other", "other", "this"] * 2
    # A machine that gets slower by the same amount each time is equally slow for both.
    assert sum(place for place, which in enumerate(order) if which == "this") == sum(
        place for place, which in enumerate(order) if which == "other"
    )


def test_ratio_of_medians() -> None:
    text = table({"ranged": [0.102, 0.9, 0.1, 0.104, 0.101]}, {"ranged": [0.1, 0.1, 0.099]}, "66a66d2")
    assert text.splitlines()[2] == "| ranged | 102.0 | 100.0 | 1.020 | 100.0 to 900.0 | 99.0 to 100.0 |"
    with pytest.raises(UserError, match="66a66d2: attention backend flash was not measured in 66a66d2"):
        table({"flash": [1.0]}, {}, "66a66d2")


@from_git
def test_both_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(tree, arguments, processes):
        asked.append((tree == ROOT, list(arguments), processes))
        assert (tree / "tools" / "benchmark_step.py").is_file()
        return {"ranged": [0.2 if tree == ROOT else 0.1] * 2}

    monkeypatch.setattr(against, "measure", measure)
    assert "| 200.0 | 100.0 | 2.000 |" in compare("HEAD", ["run.toml", "--against", "HEAD"], 2, 2)
    assert asked == [(here, ["run.toml"], 2) for here in (True, False, False, True)]


@from_git
def test_a_commit_that_is_not_there() -> None:
    with (
        pytest.raises(UserError, match="--against nosuch: expected a commit of the git repository"),
        against.checkout("nosuch"),
    ):
        pass
