"""What papers say, and whether it holds here: rules on the cells, so that nobody has typed a verdict.

Two words recur. A method has **done damage** at a checkpoint if the interval of one and the same measure lies on the
worse side of 0 in every seed, of whatever size: the mean score of the tasks that are not at floor, the mean
log-probability of the right answers, or the bits per byte of the text. It shows **no drop** of the mean score
beyond δ if every seed's interval of it ends above −δ and no seed's interval of any measure lies below 0.

Methods whose cells are equal to the bit are one observation, and counted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from lm_eval_edit.comparison.statistics import mcnemar

from .cells import BITS, LOGPROB, METRICS, SCORE, Cells, Change
from .design import Form

HOLDS, FAILS, OPEN = "holds", "does not hold", "not to be told"
IN_PART, UNMEASURED = "holds in part", "not measured"
DELTA = 0.02
HANDFUL = 10
TAKES = 0.5  # the share of edits that a method must have written to have a say in what edits do
MEASURES = {SCORE: "mean score", LOGPROB: "log-probability of the answers", BITS: "bits per byte"}
DIGITS = {BITS: 3}


@dataclass(frozen=True)
class Verdict:
    """One hypothesis.

    Attributes:
        claim: What is said.
        rule: When it holds and when it does not.
        verdict: HOLDS, FAILS, OPEN, IN_PART, or UNMEASURED where a method that it is about is not among the cells.
        why: The figures.
    """

    claim: str
    rule: str
    verdict: str
    why: str


def damage(cells: Cells, method: str, n: int) -> list[str]:
    """The measures by which a method has done damage."""
    found = []
    for kind in METRICS:
        change = cells.changes(method, n, kind)
        if change is not None and change.worse:
            found.append(kind)
    return found


def no_drop(cells: Cells, method: str, n: int) -> bool:
    """Whether the mean score has fallen by no more than δ for certain, and no measure in any seed."""
    changes = {kind: cells.changes(method, n, kind) for kind in METRICS}
    score = changes[SCORE]
    if score is None or not score.no_worse_than(DELTA):
        return False
    return not any(change.worse_once for change in changes.values() if change is not None)


def distinct(cells: Cells, methods: Sequence[str], n: int) -> list[str]:
    """Of methods whose cells are equal to the bit only the first."""
    equals = cells.equals(n)
    first: dict[str, str] = {}
    for method in methods:
        first.setdefault(equals.get(method, method), method)
    return list(first.values())


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def sizes(cells: Cells, method: str, n: int) -> str:
    """A method and what was lost by each measure by which it has done damage: a loss that is certain may be small."""
    found = [(kind, cells.changes(method, n, kind)) for kind in damage(cells, method, n)]
    said = [
        f"{MEASURES[kind]} {signed(change.value, DIGITS.get(kind, 2))}" for kind, change in found if change is not None
    ]
    return f"`{method}` ({', '.join(said)})"


def told(change: Change | None, kind: str = SCORE) -> str:
    """A change with its interval."""
    if change is None:
        return "–"
    value, low, high = (signed(each, DIGITS.get(kind, 2)) for each in (change.value, change.low, change.high))
    return f"{value} ({low} to {high})"


def names(methods: Sequence[str]) -> str:
    """Methods in a sentence."""
    return ", ".join(f"`{method}`" for method in methods) or "none"


# ------------------------------------------------------------------------------------------------------- the hypotheses


def handful(cells: Cells) -> Verdict:
    """A handful of edits is harmless."""
    all_of_them = [
        method
        for method in cells.methods
        if HANDFUL in cells.checkpoints(method)
        and (cells.mean(method, HANDFUL, "edithurt_efficacy", "em") or 0) >= TAKES
    ]
    writing = distinct(cells, all_of_them, HANDFUL)
    hurt = [method for method in writing if damage(cells, method, HANDFUL)]
    safe = [method for method in writing if no_drop(cells, method, HANDFUL)]
    verdict = FAILS if hurt else HOLDS if writing and len(safe) == len(writing) else OPEN
    one = [method for method in distinct(cells, all_of_them, 1) if damage(cells, method, 1)]
    why = (
        f"{len(writing)} methods wrote at least half of their {HANDFUL} facts; damage by "
        f"{_with_sizes(cells, hurt, HANDFUL)}; no drop of the mean score beyond {DELTA} for {len(safe)} "
        f"({names(safe)}). After one edit damage by {_with_sizes(cells, one, 1)}"
    )
    rule = (
        f"of the methods whose efficacy after {HANDFUL} edits is {TAKES} or more, one that has done damage, of "
        f"whatever size, refutes it; it holds if all show no drop"
    )
    return Verdict("A handful of edits is harmless", rule, verdict, why)


def random_hurts(cells: Cells) -> Verdict:
    """A norm-matched random change hurts as much."""
    said, results = [], []
    for method, control in (("rome", "random_rome"), ("memit", "random_memit")):
        against = {kind: cells.changes(control, HANDFUL, kind, than=method) for kind in METRICS}
        known = {kind: change for kind, change in against.items() if change is not None}
        if SCORE not in known:
            continue
        better = [kind for kind, change in known.items() if change.better]
        worse = [kind for kind, change in known.items() if change.worse]
        score = known[SCORE]
        same = score.no_worse_than(DELTA) and all(high <= DELTA for _, high in score.ends)
        result = OPEN
        if better and not worse:
            result = FAILS
        elif not better and (worse or same):
            result = HOLDS
        results.append(result)
        figures = ", ".join(f"{MEASURES[kind]} {told(change, kind)}" for kind, change in known.items())
        said.append(f"`{control}` against `{method}` ({result}): {figures}")
    verdict = results[0] if results and len(set(results)) == 1 else OPEN
    rule = (
        f"control against method after {HANDFUL} edits, on the same documents: fails if the control keeps more in "
        f"every seed by some measure and less by none; holds if the reverse is so, or if neither keeps more by any "
        f"measure and the mean score lies within ±{DELTA}; for ROME and MEMIT alike"
    )
    return Verdict("A norm-matched random change hurts as much", rule, verdict, "; ".join(said))


def rome_breaks(cells: Cells) -> Verdict:
    """ROME breaks and R-ROME does not."""
    n = HANDFUL
    rome, r_rome = damage(cells, "rome", n), damage(cells, "r_rome", n)
    against = {kind: cells.changes("r_rome", n, kind, than="rome") for kind in (SCORE, LOGPROB, BITS)}
    better = [kind for kind, change in against.items() if change is not None and change.better]
    verdict = OPEN
    if rome and r_rome and not better:
        verdict = FAILS
    elif rome and not r_rome and better:
        verdict = HOLDS
    elif rome and better:
        verdict = IN_PART
    why = (
        f"after {n} edits ROME has done damage by {_measures(rome)}, R-ROME by {_measures(r_rome)}; R-ROME against "
        f"ROME: " + ", ".join(f"{MEASURES[kind]} {told(change, kind)}" for kind, change in against.items())
    )
    rule = (
        "holds if ROME has done damage, R-ROME has not, and R-ROME keeps more in every seed by some measure; in part "
        "if both have and R-ROME keeps more; fails if both have and it does not"
    )
    return Verdict("ROME breaks and R-ROME does not", rule, verdict, why)


def remembering(cells: Cells) -> Verdict:
    """Remembering keys (memit_seq) is enough."""
    n = HANDFUL
    hurt, kept = damage(cells, "memit_seq", n), cells.mean("memit_seq", n, "edithurt_efficacy", "em")
    other = cells.mean("memit", n, "edithurt_efficacy", "em")
    change = cells.changes("memit_seq", n, LOGPROB, than="memit")
    verdict = OPEN
    if hurt:
        verdict = FAILS
    elif kept is not None and kept >= 0.9 and no_drop(cells, "memit_seq", n):
        verdict = HOLDS
    why = (
        f"after {n} edits memit_seq answers {_share(kept)} of its facts, MEMIT {_share(other)}; damage by "
        f"{_measures(hurt)}; memit_seq against MEMIT {told(change)} nats"
    )
    rule = f"fails if memit_seq has done damage after {n} edits; holds if it answers 0.9 of its facts and shows no drop"
    return Verdict("Remembering keys is enough", rule, verdict, why)


def norm_predicts(cells: Cells, methods: Sequence[str]) -> Verdict:
    """The norm of the update predicts the damage.

    Args:
        methods: Those that are observations of their own: no controls, and one of each base.
    """
    n, said, results = HANDFUL, [], []
    counted = distinct(cells, methods, n)
    for kind in (LOGPROB, BITS):
        pairs = [
            (moved, -change.value)
            for method in counted
            if (moved := cells.moved(method, n)) is not None and (change := cells.changes(method, n, kind)) is not None
        ]
        if len(pairs) < 5:
            continue
        norms, lost = zip(*pairs, strict=True)
        rho, p = stats.spearmanr(norms, lost)
        low, high = fisher(float(rho), len(pairs))
        results.append(HOLDS if rho > 0 and p < 0.05 else FAILS if high < 0.5 else OPEN)
        said.append(
            f"{MEASURES[kind]}: ρ = {signed(float(rho))} ({signed(low)} to {signed(high)}) over {len(pairs)} methods"
        )
    verdict = results[0] if results and len(set(results)) == 1 else OPEN
    said.append(f"the methods are {names(counted)}")
    rule = (
        f"Spearman's ρ between ‖Δ‖/‖W‖ and the loss after {n} edits, over the methods, without controls and with one "
        f"of those that build on the same editor: holds if ρ is above 0 with p < 0.05 for answers and text alike, "
        f"fails if the 95 % interval ends below 0.5 for both. ‖W‖ is over the weights that a "
        f"method edits, and these differ from one to the other"
    )
    return Verdict("The norm of the update predicts the damage", rule, verdict, "; ".join(said))


def perplexity_warns(cells: Cells) -> Verdict:
    """Perplexity warns before the tasks do."""
    order: dict[str, list[str]] = {"first": [], "together": [], "later": [], "alone": []}
    for method in _distinct_throughout(cells):
        text, tasks = _onset(cells, method, (BITS,)), _onset(cells, method, (SCORE, LOGPROB))
        if not math.isinf(tasks):
            order["first" if text < tasks else "together" if text == tasks else "later"].append(method)
        elif not math.isinf(text):
            order["alone"].append(method)
    first, together, later, alone = order.values()
    verdict = OPEN
    if len(later) > len(first):
        verdict = FAILS
    elif first and not later and len(first) >= len(together):
        verdict = HOLDS
    why = (
        f"of the methods with damage in the tasks, it shows in the text at an earlier checkpoint for {len(first)} "
        f"({names(first)}), in both at the same one for {len(together)} ({names(together)}), in the text later or "
        f"not at all for {len(later)} ({names(later)}); in the text alone for {len(alone)} ({names(alone)}), "
        f"which warned of nothing that came"
    )
    rule = (
        "the first checkpoint at which a method has done damage by bits per byte beside the first at which it has by "
        "mean score or log-probability: holds if the text is never later and earlier at least as often as not; fails "
        "if it is later more often than earlier. Methods without damage in the tasks decide nothing"
    )
    return Verdict("Perplexity warns before the tasks do", rule, verdict, why)


def not_in_chat(chat: Mapping[str, Any]) -> Verdict:
    """Edits in raw text are not there in chat."""
    facts = list(chat["facts"].values())
    text, inside = ([bool(fact["text"][where]["em"]) for fact in facts] for where in ("text", "chat"))
    lost = sum(a and not b for a, b in zip(text, inside, strict=True))
    won = sum(b and not a for a, b in zip(text, inside, strict=True))
    p = mcnemar(lost, won)
    share = sum(inside) / max(sum(text), 1)
    verdict = (HOLDS if share < 0.5 else IN_PART) if p < 0.05 and lost > won else OPEN
    why = (
        f"ROME, {len(facts)} facts edited as text, each alone: {sum(text)} answered as text, {sum(inside)} inside the "
        f"template; {lost} lost, {won} won, p = {p:.3f} (McNemar; docs/chat.json)"
    )
    rule = "holds if significantly fewer are answered inside the chat template, and fewer than half of those as text"
    return Verdict("Edits in raw text are not there in chat", rule, verdict, why)


def all_verdicts(cells: Cells, chat: Mapping[str, Any], form: Form) -> list[Verdict]:
    """Every hypothesis, in the page's order."""
    bases = form.bases(cells.methods)
    rules: list[tuple[Callable[[Cells], Verdict], tuple[str, ...]]] = [  # with the methods that it is about
        (handful, ()),
        (random_hurts, ("rome", "random_rome", "memit", "random_memit")),
        (rome_breaks, ("rome", "r_rome")),
        (remembering, ("memit", "memit_seq")),
        (lambda cells: norm_predicts(cells, bases), ()),
        (perplexity_warns, ()),
    ]
    found = []
    for rule, needed in rules:
        verdict = rule(cells)
        lacking = [method for method in needed if HANDFUL not in cells.checkpoints(method)]
        if lacking:
            verdict = replace(verdict, verdict=UNMEASURED, why=f"{names(lacking)} after {HANDFUL} edits")
        found.append(verdict)
    return [*found, not_in_chat(chat)]


# ------------------------------------------------------------------------------------------------------------- details


def fisher(rho: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation by Fisher's transformation, with Bonett and Wright's standard error."""
    if abs(rho) >= 1:
        return rho, rho
    half = float(stats.norm.isf(0.025)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _onset(cells: Cells, method: str, kinds: Sequence[str]) -> float:
    """The first checkpoint at which a method has done damage by one of the measures; infinite where there is none."""
    for n in cells.checkpoints(method):
        if set(damage(cells, method, n)) & set(kinds):
            return n
    return math.inf


def _distinct_throughout(cells: Cells) -> list[str]:
    """Of methods whose cells are equal to the bit at every checkpoint only the first."""
    equals = {n: cells.equals(n) for method in cells.methods for n in cells.checkpoints(method)}
    first: dict[tuple[tuple[int, str], ...], str] = {}
    for method in cells.methods:
        first.setdefault(tuple((n, equals[n].get(method, method)) for n in cells.checkpoints(method)), method)
    return list(first.values())


def _with_sizes(cells: Cells, methods: Sequence[str], n: int) -> str:
    return f"{len(methods)} ({'; '.join(sizes(cells, method, n) for method in methods) or 'none'})"


def _measures(kinds: Sequence[str]) -> str:
    return " and ".join(MEASURES[kind] for kind in kinds) or "no measure"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
