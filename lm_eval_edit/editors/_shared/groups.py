"""Rows in groups of about one length, each of which is a pass of its own: padding is work that nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

#: What one more pass costs, in positions: matrix products are less efficient the smaller they are, and kernels are
#: launched anew. Measured on one core (SmolLM2: 16 for the products, about 8 for the rest); on a device a guess.
PASS_COSTS = {"cpu": 24}
PASS_COSTS_ELSEWHERE = 500


def in_groups(last: Sequence[int], first: int, device: str = "cpu") -> list[list[int]]:
    """Rows in groups that run together, so that few positions run that nobody reads, in few passes.

    Args:
        last: For each row, the last column that is read.
        first: The first column that runs.
        device: The type of the device they run on.

    Returns:
        Numbers of the rows of each group, in order; shorter rows first.
    """
    order = sorted(range(len(last)), key=lambda row: last[row])
    widths = [last[row] - first + 1 for row in order]
    more = PASS_COSTS.get(device, PASS_COSTS_ELSEWHERE)
    ends = [at for at in range(1, len(order) + 1) if at == len(order) or widths[at] != widths[at - 1]]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # of the shortest rows: cost, and where their last group begins
    for end in ends:
        best[end] = min((cost + more + (end - begin) * widths[end - 1], begin) for begin, (cost, _) in best.items())
    groups, end = [], len(order)
    while end:
        begin = best[end][1]
        groups.append(sorted(order[begin:end]))
        end = begin
    return groups[::-1]
