"""What a configuration must keep to for the sake of its condition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..config.problems import Report
from ..config.sections import enter, find
from ..config.shrink import Shrinking, fewer
from ..errors import UserError
from .folder import CLASSES, WORDS_WIDTH, folder_width, longest_text
from .options import IDS, ConditionConfig
from .tokenizer_file import MOST

KINDS = ("none", "class", "text")


def check_condition(report: Report) -> None:
    """The section's own options, and what the objective makes of them."""
    report.check_range("at least 1", lambda v: v >= 1, "condition.max_tokens")
    report.check_range("at least 2", lambda v: v >= 2, "condition.tokens")
    report.check_range("at least 0", lambda v: v >= 0, "condition.frames")
    report.check_range(f"from 0 to {MOST}", lambda v: 0 <= v <= MOST, "condition.width")
    report.check_range("at least 0 and below 1", lambda v: 0 <= v < 1, "condition.dropout")
    condition, objective = report.config.condition, report.config.objective.name
    known = find("objective", objective).conditions
    if report.sound("objective.name"):
        without = f"with objective.name = {objective}, which makes nothing of it"
        takes = [kind for kind in ("text", IDS) if kind in known] if condition.kind == "text" else []
        if condition.kind not in {"none", *known} and not takes:
            report.add("condition.kind", f"be none {without}", "use condition.kind=none")
            report.broken.add("condition.encoder")
        if takes:
            _check_taken(report, takes, objective)
        if any(condition.frames) and "frames" not in known:
            report.add("condition.frames", f"be [0, 0] {without}", "use [0, 0]")
    if condition.kind == "class":
        _check_classes(report)
    if condition.kind == "text" and report.sound("condition.encoder", "condition.width", "condition.max_tokens"):
        _check_encoder(report)
    _check_frames(report)


def _check_classes(report: Report) -> None:
    classes = report.config.condition.classes
    if not classes:
        report.add(
            "condition.classes",
            'name the classes with condition.kind = "class"',
            'for physics scenes for example ["bounce", "fall"] or ["bounce/left", "bounce/right"]',
        )
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or "" in classes:
        report.add("condition.classes", "be different names", f"{(twice or [''])[0]!r} is there twice, or empty")


def _check_taken(report: Report, takes: list[str], objective: str) -> None:
    """Objectives take features of a text, or ids; takes: `text`, `ids`, or both."""
    encoder = report.config.condition.encoder
    if not report.sound("condition.encoder") or ("text" if encoder != IDS else IDS) in takes:
        return
    must = f"be {IDS}" if encoder != IDS else f"not be {IDS}"
    what, fix = ("ids", f"use {IDS}") if encoder != IDS else ("features", "use clip, t5 or words")
    report.add("condition.encoder", f"{must} with objective.name = {objective}, which takes {what} of texts", fix)
    report.broken.add("condition.encoder")


def _check_encoder(report: Report) -> None:
    """Its folder, where that is there, and the width of features against it."""
    condition = report.config.condition
    if condition.encoder == "words":
        _check_width(report, WORDS_WIDTH, "the encoder words")
        return
    if not condition.encoder_path and not condition.width:
        of_ids = condition.encoder == IDS
        what = "a tokenizer.json" if of_ids else f"a transformers {CLASSES[condition.encoder]} and its tokenizer"
        report.add(
            "condition.encoder_path",
            f"name a local folder when condition.encoder is {condition.encoder}",
            f"give that of {what}; with text features computed in advance (megatron-videogpt data encode-text) "
            "condition.width will do",
        )
    # One that is not there is told by `missing_paths`, and by whoever must know the width.
    if not condition.encoder_path or not Path(condition.encoder_path).is_dir():
        return
    try:
        width, most = folder_width(condition), longest_text(condition)
    except UserError as error:
        report.add("condition.encoder_path", "hold a readable text encoder", str(error))
        return
    if condition.encoder == IDS:
        return  # A model may have fewer or more ids than its tokenizer; texts are looked at one by one.
    _check_width(report, width, "this encoder")
    if most and condition.max_tokens > most:
        report.add("condition.max_tokens", f"not exceed the {most} tokens that this encoder takes", f"use {most}")


def _check_width(report: Report, width: int, of: str) -> None:
    if report.config.condition.width not in (0, width):
        report.add("condition.width", f"be 0 or {width}, the width of {of}", f"use {width}")


def _check_frames(report: Report) -> None:
    (low, high), frames = report.config.condition.frames, report.config.data.frames
    if not report.sound("condition.frames", "data.frames"):
        return
    if low > high:
        report.add("condition.frames", "have its smaller entry first", f"use [{high}, {low}]")
    elif high >= frames:
        report.add(
            "condition.frames", f"leave a frame of data.frames = {frames} to predict", f"use at most {frames - 1}"
        )


def shrink_given(small: Shrinking) -> None:
    """Frames that are given leave one to predict."""
    most = small.config.data.frames - 1
    low, high = (
        min(most, fewer(count, small.config.data.frames, small.was.data.frames)) for count in small.was.condition.frames
    )
    small.set("condition.frames", (low, high))


for name in KINDS:
    enter("condition", name, ConditionConfig, check_condition, shrink=shrink_given)
