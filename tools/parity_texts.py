"""Recorded texts of class folders, and how their ids are framed; which words have which ids is the tokenizer's, which
is not part of what was recorded.
"""

from __future__ import annotations

from megatron_videogpt.condition.captions import words_of
from megatron_videogpt.condition.ids import framed
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.objective.recorded import Cases, Report


def check_texts(cases: Cases, report: Report) -> None:
    """Every class of ucf101_text.json: its text, and its ids around those of the words."""
    meta, tokens = cases.meta, ConditionConfig().tokens
    report.add("text ids", float(meta["length"] != tokens), "length")
    start, padding = meta["start_id"], meta["pad_id"]
    for folder, recorded in meta["classes"].items():
        ids = recorded["ids"]
        inside = [number for number in ids if number not in (start, padding)]
        report.add("texts", float(words_of(folder) != recorded["text"]), folder)
        report.add("text ids", float(framed(inside, start, padding, tokens) != ids), folder)
