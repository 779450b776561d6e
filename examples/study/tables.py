"""The tables of the page, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lm_eval_edit.comparison.statistics import detectable_drop
from lm_eval_edit.comparison.verdicts import Row
from lm_eval_edit.report.budget import Budget, budget, words

from .cells import BITS, LOGPROB, PERPLEXITY, SCORE, Cells, able_mean, mean_of
from .design import Form
from .hypotheses import DELTA, HANDFUL, Verdict, names, told

#: Column -> task and metric, of what the edits wrote.
WRITTEN = {
    "efficacy": ("edithurt_efficacy", "em"),
    "generalization": ("edithurt_generalization", "em"),
    "locality": ("edithurt_locality", "prob_success"),
    "said though negated": ("edithurt_negation", "shortcut"),
}
NONE = "–"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first columns are words."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * left}{'---:|' * (len(head) - left)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def kept(cells: Cells, method: str, n: int) -> str:
    """The share of the mean score that is left, with its interval."""
    change = cells.changes(method, n, SCORE)
    if change is None or not change.base:
        return NONE
    low, value, high = (1 + each / change.base for each in (change.low, change.value, change.high))
    return f"{value:.2f} ({max(low, 0):.2f} to {high:.2f})"


def held(cells: Cells, method: str, *, certain: bool) -> str:
    """How many edits cost no more than δ, over the seeds.

    Args:
        certain: By the largest drop within the intervals instead of the drop itself.
    """
    budgets: list[Budget] = []
    for place in range(len(cells.seeds)):
        drops: list[tuple[int, float | None]] = []
        for n in cells.checkpoints(method):
            change = cells.changes(method, n, SCORE)
            drops.append((n, None if change is None else -(change.ends[place][0] if certain else change.seeds[place])))
        budgets.append(budget(drops, DELTA))
    return words(budgets) if budgets else NONE


def main_table(cells: Cells, n: int = HANDFUL) -> str:
    """Methods × what was written, what is left, what it cost, after so many edits."""
    head = ["method", *WRITTEN, "ability kept", "bits per byte", "‖Δ‖/‖W‖", "edits within 2 points", "for certain"]
    before = [number(_before(cells, n, *what)) for what in WRITTEN.values()]
    base = cells.first.figure(PERPLEXITY, BITS)
    rows = [["none", *before, "1", number(base, 3), "", "", ""]]
    for method in cells.methods:
        if n not in cells.checkpoints(method):
            continue
        written = [number(cells.mean(method, n, *what)) for what in WRITTEN.values()]
        text = cells.mean(method, n, PERPLEXITY, BITS)
        budgets = [held(cells, method, certain=sure) for sure in (False, True)]
        rows.append(
            [
                f"`{method}`",
                *written,
                kept(cells, method, n),
                number(text, 3),
                number(cells.moved(method, n), 3),
                *budgets,
            ]
        )
    return markdown(head, rows)


def _before(cells: Cells, n: int, task: str, metric: str) -> float | None:
    """The unedited model's figure on the facts of one row of each seed."""
    rows = next((cells.at(method, n) for method in cells.methods if cells.at(method, n)), [])
    return mean_of([None if (cell := cells.before(each)) is None else cell.figure(task, metric) for each in rows])


def cost_table(cells: Cells) -> str:
    """Methods × checkpoints: what it cost by each measure, with intervals; signed so that less is worse."""
    head = ["method", "edits", "efficacy", "mean score", "log-probability of the answers", "bits per byte", "‖Δ‖/‖W‖"]
    rows = []
    for method in cells.methods:
        for n in cells.checkpoints(method):
            changes = [told(cells.changes(method, n, kind), kind) for kind in (SCORE, LOGPROB, BITS)]
            efficacy = cells.mean(method, n, *WRITTEN["efficacy"])
            row = [f"`{method}`", str(n), number(efficacy), *changes, number(cells.moved(method, n), 3)]
            rows.append(row)
    return markdown(head, rows)


def _headlines(cells: Cells) -> list[Row]:
    """The tasks' main figures, the unedited model's beside those of some edited cell."""
    for cell in cells.all.values():
        if cell.run and cell.known["n_edits"] and (comparison := cells.compared(cells.unedited(cell), cell)):
            return [row for row in comparison.rows if row.headline]
    return []


def tasks_table(cells: Cells) -> str:
    """The tasks as the unedited model does them, and whether damage could be seen in their scores."""
    first = cells.first
    rows = []
    for task, floor in ((row.task, row.floor) for row in _headlines(cells)):
        metric = BITS if task == PERPLEXITY else SCORE
        tells = "at floor: " + floor if floor else "yes" if metric == SCORE else "a quantity of its own"
        figures = [number(first.figure(task, metric)), number(first.figure(task, LOGPROB))]
        rows.append([f"`{task}`", str(first.documents(task)), *figures, tells])
    head = ["task", "documents", "unedited", "`gold_logprob`", "its score can show damage"]
    return markdown(head, rows)


def scored(cells: Cells) -> dict[str, int]:
    """The tasks that the mean score is of, those not at floor, and how many documents each has."""
    tasks = [row.task for row in _headlines(cells) if row.metric == SCORE and row.floor is None]
    return {task: cells.first.documents(task) for task in tasks}


def detectable(cells: Cells, n: int = HANDFUL) -> tuple[str, str]:
    """The smallest drop of the mean score that would have been seen with a probability of 0.8: the least and the most,
    over the methods and seeds."""
    found = []
    for method in cells.methods:
        for cell in cells.at(method, n):
            comparison = cells.compared(cells.unedited(cell), cell)
            row = able_mean(comparison) if comparison else None
            if row is not None and math.isfinite(row.gain.stderr):
                found.append(detectable_drop(row.gain.stderr))
    return (number(min(found)), number(max(found))) if found else (NONE, NONE)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Hypothesis, verdict, figures."""
    return markdown(
        ["what is said", "here", "from what"],
        [[each.claim, f"**{each.verdict}**", each.why] for each in verdicts],
        left=3,
    )


def left_out(cells: Cells, form: Form) -> list[str]:
    """What the design asks for and has no figures, or those of a collapsed model: a line for each reason."""
    why: dict[tuple[str, int, str], list[int]] = {}
    wanted = [(part, seed, label, n) for part, seed in form.sweeps for label in form.labels(part)
              for n in form.parts[part]["n_edits"]]  # fmt: skip
    for part, seed, label, n in wanted:
        cell = cells.all.get(f"{part}-seed{seed}/{label}-{n:05d}")
        if cell is None or cell.run is None or cell.known["status"] != "done":
            known = {"status": None, "reason": None} if cell is None else cell.known
            reason = f"{known['status']} ({known['reason']})" if known["status"] else "not measured"
            why.setdefault((label, n, reason), []).append(seed)
    together: dict[tuple[int, str, tuple[int, ...]], list[str]] = {}
    for (label, n, reason), seeds in why.items():
        together.setdefault((n, reason, tuple(seeds)), []).append(label)
    return [
        f"after {n} edit{'s' if n > 1 else ''}, seed{'s' if len(seeds) > 1 else ''} {' and '.join(map(str, seeds))}, "
        f"{reason}: {names(labels)}"
        for (n, reason, seeds), labels in together.items()
    ]
