"""Texts of docs/parity.md: what was compared, and on which machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.layouts.cases import Case


def read(folder: Path, case: Case) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(JSON, parameters) that a case left, or None."""
    from safetensors.torch import load_file

    path = folder / f"{case.key}.json"
    return (
        (json.loads(path.read_text(encoding="utf-8")), load_file(folder / f"{case.key}.safetensors"))
        if path.is_file()
        else None
    )


def facts(cases: Iterable[Case], folder: Path) -> str:
    """What the rows of these runs were like, so that the table's reader knows that the awkward ones are among them."""
    results = [result[0]["facts"] for case in cases if (result := read(folder, case))]
    shards, bare, single, padding = (sum(values) for values in zip(*results)) if results else (0, 0, 0, 0)
    return (
        f"Over all runs the ranks worked on {shards:,} row shards: {bare:,} were context parallel shards "
        "without a clean row although their row has some,\n  "
        f"{single:,} belonged to rows of single clips (no clean row anywhere), and their rows held "
        f"{padding:,} padding tokens."
    )


TEXT = """# Every layout gives the numbers of one process

Written by `{command}` on {date}: {machine}; {versions}. Building and training took {seconds} s altogether, beside
starting the processes.

Each layout runs as real processes over gloo, takes {steps} steps of AdamW (learning rate 1e-3, no warm-up, gradient
norm clipped to 1, epsilon 1e-5, weight decay 0.1) with global batches of {batch} samples, and is compared with **one
process in the same precision** and the same model.

- *loss*, *gradient norm*: largest relative difference over the {steps} steps. *parameter*: after the last step, norm of
  the difference divided by the norm of the parameter, for the worst parameter of the model, whose released name
  follows; `ema.` marks an exponential moving average. *update*: likewise, divided by the norm of what training has
  added to the parameter. Compared are the optimizer's float32 main parameters; the weights that the model computes with
  must be these, rounded.
- Limits: fp32 {fp32[loss]:g} / {fp32[norm]:g} / {fp32[parameter]:g} for loss, gradient norm and parameter. bf16
  {bf16[loss]:g} / {bf16[norm]:g} for loss and gradient norm, and {bf16[update]:g} for the update: gradients are rounded
  to bf16 on their way, and Adam makes updates of the same size of small ones.
- Start weights are spread and non-zero. The real start has a zero head, which would give the backbone no gradient in
  the first step and hide errors. Matrices have a standard deviation of 0.5 / sqrt(inputs). With twice that, two bf16
  runs of one process that differ only in packing drift 0.6% apart in gradient norm within four steps (1.2% with CP2,
  equal to 0.01% in the first step): a bf16 comparison would then measure chaos, not layouts.
- Adam divides by the root of the second moment: where a gradient is smaller than epsilon's scale, rounding errors alone
  decide an update's size, and the smaller epsilon, the more so. Epsilon is the project's default, not one chosen for
  this table.
- Samples have {splits} frames per clip in turn and two resolutions, so that rows of "micro-batches of 2" hold two
  latent grids; in step {single} every sample is a single clip.
- {facts}
- Overlapped gradient reduction and parameter gathering are on unless a row says "no overlap"; "small buckets" cuts the
  0.4 million parameters of the plain model into buckets of 20,000, so that several are under way at once.
- Models: {models}.
- TP tensor, SP sequence, CP context, PP pipeline, VP virtual pipeline, DP data parallel; options are those of
  `parallel.`, `ema` is `optimizer.ema_decay`.

| layout | processes | precision | loss | gradient norm | worst parameter | worst update | verdict |
|---|---|---|---|---|---|---|---|
{table}

{verdict}
"""


def machine() -> str:
    """The processor and its cores."""
    try:
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'an unknown CPU'}"
