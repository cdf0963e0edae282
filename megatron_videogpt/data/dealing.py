"""Samples dealt to ranks and rows by cost, and the lengths that rows are padded to."""

from __future__ import annotations

import heapq

import numpy as np

EXCHANGES = 4  # per rank, at most, to improve a dealing
CLOSE = 0.0005  # a dealing whose largest share is so close to the mean is not improved further


def row_ladder(budget: int, count: int, multiple: int, blank: int) -> np.ndarray:
    """int64, ascending: at most ``count`` row lengths, the multiples of budget / count, each rounded up to a multiple
    of ``multiple``; none is shorter than ``blank``, what an empty row holds.

    Even steps, because rows are nearly full: half a step is 0.8 % of a full row with 64 lengths.  Steps that grow with
    the length would waste more there.
    """
    steps = -(-np.arange(1, count + 1, dtype=np.int64) * budget // count)
    lengths = np.unique(-(-steps // multiple) * multiple)
    return lengths[lengths >= min(blank, lengths[-1])]


def deal(costs: np.ndarray, ranks: int) -> list[list[int]]:
    """Sample numbers 0..n-1 of each rank, such that the largest sum of costs is small.

    The largest sample first, each to the rank with least so far (LPT); then samples move or change places between the
    fullest and the emptiest rank.
    """
    groups: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    values = costs.tolist()
    for sample in np.argsort(-costs, kind="stable").tolist():
        load, rank = heap[0]
        groups[rank].append(sample)
        heapq.heapreplace(heap, (load + values[sample], rank))
    loads = np.zeros(ranks, dtype=np.int64)
    for load, rank in heap:
        loads[rank] = load
    _exchange(groups, loads, values)
    return groups


def _exchange(groups: list[list[int]], loads: np.ndarray, costs: list[int]) -> None:
    """Improve a dealing in place, while the fullest and the emptiest rank gain from each other."""
    enough = int(loads.sum() / len(loads) * (1 + CLOSE))
    for _ in range(EXCHANGES * len(groups)):
        full, empty = int(loads.argmax()), int(loads.argmin())
        gap = int(loads[full] - loads[empty])
        if loads[full] <= enough:
            return
        # Of all differences that a move (against nothing: -1) or an exchange makes, the one nearest to half the gap.
        gains = (
            (costs[give] - (costs[take] if take >= 0 else 0), give, take)
            for give in groups[full]
            for take in (-1, *groups[empty])
        )
        gain, give, take = min(gains, key=lambda item: (abs(2 * item[0] - gap), item[1], item[2]))
        if not 0 < gain < gap:
            return
        groups[full].remove(give)
        groups[empty].append(give)
        if take >= 0:
            groups[empty].remove(take)
            groups[full].append(take)
        loads[full] -= gain
        loads[empty] += gain


def fill_rows(
    groups: list[list[int]], tokens: list[int], costs: list[int], budget: int, row_step: int = 1
) -> list[list[list[int]]]:
    """Rows of each rank: the same number for all, the fewest that first-fit finds for the rank that needs most, a
    multiple of ``row_step``.

    Inside a rank the rows are balanced by cost, as stages of a pipeline wait for the longest; the costliest row comes
    first, samples of a row in order.
    """
    tight = [_first_fit(group, tokens, budget) for group in groups]
    count = -(-max(1, *map(len, tight)) // row_step) * row_step
    chosen = (_balanced(group, tokens, costs, budget, count) or fitted for group, fitted in zip(groups, tight))
    return [
        [sorted(row) for row in sorted(rows, key=lambda row: -sum(costs[i] for i in row))] + [[]] * (count - len(rows))
        for rows in chosen
    ]


def _first_fit(group: list[int], tokens: list[int], budget: int) -> list[list[int]]:
    """The longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(group, key=lambda i: (-tokens[i], i)):
        place = next((row for row, left in enumerate(room) if left >= tokens[sample]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(budget)
        rows[place].append(sample)
        room[place] -= tokens[sample]
    return rows


def _balanced(group: list[int], tokens: list[int], costs: list[int], budget: int, count: int) -> list[list[int]] | None:
    """The costliest first, each into the row of least cost that has room; None where one finds none."""
    rows: list[list[int]] = [[] for _ in range(count)]
    room, loads = [budget] * count, [0] * count
    for sample in sorted(group, key=lambda i: (-costs[i], i)):
        places = [row for row in range(count) if room[row] >= tokens[sample]]
        if not places:
            return None
        place = min(places, key=loads.__getitem__)
        rows[place].append(sample)
        room[place] -= tokens[sample]
        loads[place] += costs[sample]
    return rows
