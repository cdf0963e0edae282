"""What a fit says, as a Markdown report for whoever has not seen the tool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .analysis import FALL, SHARE, Best, Estimate, Prediction, Result
from .intervals import Interval
from .isoflop import groups
from .points import STEPS
from .runs import ALL, DECODER

NAMES = {"huber": "Huber", "projection": "variable projection"}

INTRODUCTION = """\
This report fits a scaling law to training runs: how the loss falls with the size of a model and with how long it is
trained.

    L(N, D) = E + A / N^alpha + B / D^beta

N is the number of parameters, D the number of training tokens, L the loss. E is what no size and no amount of data
reaches; the second term is what a larger model would still gain, the third what more tokens would. Compute is counted
as C = 6 N D floating-point operations, a convention that leaves out attention over pairs of tokens.

Two methods fit the same law; where they agree within their intervals, the choice between them does not matter.

- **Huber**: the sum of Huber's loss (delta 1e-3) of log predicted - log measured, minimised by L-BFGS from a grid of
  starts (Hoffmann et al. 2022). It all but ignores outliers.
- **Variable projection**: a search over alpha and beta alone, in which E, A and B are the least squares solution for
  relative residuals (arXiv 2603.22339). It uses well-behaved points best, and follows outliers.
"""

BOOTSTRAP = """\
Bootstrap intervals come from {replicates:,} fits to as many points drawn with replacement; profile intervals from how
far one number can move, all others fitted anew, before the sum of squares says no (F distribution). Both are for
{level:.0%} and assume that the law itself is right: how far it may be extended, the held-out runs say.
"""

ISOFLOP = """\
The dotted parabolas are drawn through runs of about the same compute, as is often done. **Do not read numbers off
them**: their minima are biased even without noise, by the width of the grid of sizes, by how far it is off centre, and
where alpha and beta differ (arXiv 2603.22339). The frontier above comes from the law.
"""

STEPS_FORM = """\
With the batch b apart from the steps S, so that runs with poor batch sizes say something too (arXiv 2607.01487; the
form is taken from its abstract): L = E + A / N^alpha + B / S^beta + C / b^gamma. The b of this report is {batch}.
"""


ERRORS = """\
The loss of {some} of {all} points has a standard error of its own, {least:.2g} to {most:.2g} % of it (`se_loss` in
`points.csv`): how far a mean over other held-out videos might lie. Runs that are validated on the same clips, with the
same noise, share most of that, so that differences between them are surer than it says; the fits do not use it.
"""


@dataclass(frozen=True)
class About:
    """Where points are from: what was read; parameters: what N counts in runs, "" for tables; minded: what a reader
    must know of what was held out.
    """

    read: tuple[str, ...]
    parameters: str = ""
    minded: tuple[str, ...] = ()


def report(result: Result, pictures: Sequence[str], about: About) -> str:
    """The whole text.  pictures: those that were drawn."""
    level = f"{result.settings.level:.0%}"
    parts = ["# Scaling law\n", INTRODUCTION, _points(result, about), "## The law\n", _law(result.estimates, level)]
    parts += [BOOTSTRAP.format(replicates=result.settings.replicates, level=result.settings.level)]
    parts += [_remarks(result.estimates)]
    parts += ["## Where compute is best spent\n", _share(result, level), _frontiers(result, level)]
    parts += [_picture(pictures, "frontier"), "## Held-out runs\n", _predictions(result)]
    parts += ["## What is left over\n", _left_over(result), _picture(pictures, "residuals")]
    parts += _isoflop(result, pictures)
    if "loss_curves" in pictures:
        parts += ["## Loss curves\n", _picture(pictures, "loss_curves")]
    parts += ["## Steps and batch\n", _steps(result, level, about)]
    if result.levels or set(result.left_out) - {"steps and batch"}:
        parts += ["## By noise level, frame, or whatever the runs tell apart\n", _levels(result, level)]
    return "\n".join(part for part in parts if part)


TOKENS = "D counts every token of the rows that were trained on: of clips that are predicted, and of those they see."
COUNTED = {
    "": "N, D and loss are the table's own.",
    ALL: f"N counts all parameters that are trained. {TOKENS}",
    DECODER: f"N counts the decoder's layers and its last norm alone, without embedding and head. {TOKENS}",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def span(interval: Interval) -> str:
    """``0.31 to 0.37``."""
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def _picture(pictures: Sequence[str], name: str) -> str:
    return f"![{name}]({name}.png)\n" if name in pictures else ""


def _points(result: Result, about: About) -> str:
    chosen = result.selection
    everything = (*chosen.fitted, *chosen.held_out)
    sizes, tokens = [p.parameters for p in everything], [p.tokens for p in everything]
    lines = [
        "## Points\n",
        f"{len(chosen.fitted)} points are fitted, {len(chosen.held_out)} held out, {len(chosen.dropped)} dropped. N is "
        f"{min(sizes):.3g} to {max(sizes):.3g}, D {min(tokens):.3g} to {max(tokens):.3g}, C "
        f"{min(p.compute for p in everything):.3g} to {max(p.compute for p in everything):.3g} FLOPs. `points.csv` has "
        "all of them.\n",
        f"Read from {', '.join(f'`{name}`' for name in about.read)}. {COUNTED[about.parameters]}\n",
        *(f"**Mind:** {line}.\n" for line in about.minded),
    ]
    if chosen.dropped:
        lines += [table(("dropped", "why"), ((point.name, point.dropped) for point in chosen.dropped))]
    sure = [100 * point.errors["loss"] / point.loss for point in everything if "loss" in point.errors]
    if sure:
        lines += [ERRORS.format(least=min(sure), most=max(sure), some=len(sure), all=len(everything))]
    counted = [point.flops / point.compute for point in everything if point.flops == point.flops]
    if counted:
        lines += [
            f"Counted exactly, with attention on attended pairs, runs took {min(counted):.2f} to {max(counted):.2f} "
            "times 6 N D.\n"
        ]
    return "\n".join(lines)


def _law(estimates: dict[str, Estimate], level: str) -> str:
    rows = []
    for method, one in estimates.items():
        for name, value in one.numbers.items():
            profiled = span(one.profile[name]) if name in one.profile else ""
            if name not in (SHARE, FALL):
                rows.append((f"{name}, {NAMES[method]}", number(value), span(one.bootstrap[name]), profiled))
    return table(("", "value", f"bootstrap {level}", f"profile {level}"), rows)


def _remarks(estimates: dict[str, Estimate]) -> str:
    said = [f"- {NAMES[method]}: {text}." for method, one in estimates.items() for text in one.fit.remarks]
    return "\n".join(["**Mind:**\n", *said, ""]) if said else ""


def _share(result: Result, level: str) -> str:
    lines = [
        "Along C = 6 N D the loss is least at N = G (C / 6)^a and D = (C / 6)^(1 - a) / G, a = beta / (alpha + beta); "
        "there it falls as L - E ~ C^-c, c = alpha beta / (alpha + beta).\n"
    ]
    interval, rows = f"bootstrap {level}", []
    for method, one in result.estimates.items():
        cells = [text for name in (SHARE, FALL) for text in (number(one.numbers[name]), span(one.bootstrap[name]))]
        rows.append((NAMES[method], *cells))
    return "\n".join([*lines, table(("", SHARE, interval, FALL, interval), rows)])


def _frontiers(result: Result, level: str) -> str:
    rows = [row for method, best in result.best.items() for row in _frontier_rows(NAMES[method], best)]
    head = ("C, FLOPs", "N", level, "D", level, "loss", level)
    return table(head, rows)


def _frontier_rows(label: str, best: Best) -> list[tuple[str, ...]]:
    rows = []
    for place, compute in enumerate(best.line.compute):
        cells = [f"{compute:.3g}, {label}"]
        for name in ("parameters", "tokens", "loss"):
            line, low, high = (getattr(one, name)[place] for one in (best.line, best.low, best.high))
            cells += [number(line), span((low, high))]
        rows.append(tuple(cells))
    return rows


def _predictions(result: Result) -> str:
    if not result.predictions:
        return "None were held out (`--hold-out`), so that nothing here shows how far the law may be extended.\n"
    times = min(p.compute for p in result.selection.held_out) / max(p.compute for p in result.selection.fitted)
    rows = [
        (f"{one.point.name}, {NAMES[one.method]}", number(one.point.compute), *_predicted(one))
        for one in result.predictions
    ]
    head = ("run", "C, FLOPs", "measured", "predicted", "error", f"interval {result.settings.level:.0%}", "")
    return (
        f"The law was fitted without them; the smallest has {times:.2g} times the compute of the largest fitted run. "
        "Intervals are for one such run: they hold the law's uncertainty and what runs scatter around it.\n\n"
    ) + table(head, rows)


def _predicted(one: Prediction) -> tuple[str, ...]:
    """Measured, predicted, error, interval, and whether it holds what was measured."""
    interval = f"{span(one.interval)} (+-{100 * one.half_width:.1f} %)"
    inside = "inside" if one.inside else "**outside**"
    return number(one.point.loss), number(one.loss), f"{100 * one.error:+.2f} %", interval, inside


def _left_over(result: Result) -> str:
    rows = []
    for method, one in result.estimates.items():
        size = abs(one.fit.residuals)
        values = (f"{100 * (size**2).mean() ** 0.5:.3g} %", f"{100 * size.max():.3g} %", f"{one.fit.objective:.6g}")
        rows.append((NAMES[method], *values))
    head = ("log residuals", "root mean square", "largest", "objective")
    return table(head, rows) + (
        "\nObjectives: the sum of Huber's losses; half the sum of squared relative residuals. A pattern over N or D in "
        "the picture says that the law is not the right one there.\n"
    )


def _isoflop(result: Result, pictures: Sequence[str]) -> list[str]:
    lines = ["## Runs of equal compute\n"]
    if "isoflop" not in pictures:
        return [*lines, "No three sizes have about the same compute: nothing to draw.\n"]
    found = groups([*result.selection.fitted, *result.selection.held_out])
    return [*lines, f"Groups: {len(found)}.\n", ISOFLOP, _picture(pictures, "isoflop")]


def _steps(result: Result, level: str, about: About) -> str:
    if not result.steps:
        return f"No law in steps and batch: {result.left_out['steps and batch']}.\n"
    assert STEPS == ("N", "S", "b")
    text = STEPS_FORM.format(batch="tokens of an optimizer step" if about.parameters else "the table's own")
    return "\n".join([text, _law(result.steps, level), _remarks(result.steps)])


def _levels(result: Result, level: str) -> str:
    rows = []
    for name, one in result.levels.items():
        cells = [f"{number(one.numbers[key])} ({span(one.bootstrap[key])})" for key in ("E", "alpha", "beta", SHARE)]
        rows.append((name, *cells))
    lines = ["The same law for each of these losses alone, by variable projection, with bootstrap intervals.\n"]
    if rows:
        lines.append(table(("loss", f"E ({level})", f"alpha ({level})", f"beta ({level})", f"a ({level})"), rows))
    held_out = [
        (f"{one.point.name}, {name}", *_predicted(one))
        for name, found in result.level_predictions.items()
        for one in found
    ]
    if held_out:
        lines.append(table(("held out", "measured", "predicted", "error", f"interval {level}", ""), held_out))
    lines += [f"- {name}: {why}." for name, why in result.left_out.items() if name != "steps and batch"]
    return "\n".join([*lines, ""])
