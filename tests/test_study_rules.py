"""The verdicts of the study: rules on cells, each with what it holds of and what refutes it."""

from __future__ import annotations

import re
import shutil

import pytest

from examples.study import hypotheses, tables
from examples.study.cells import Cells, Change
from examples.study.design import RESULTS, form

REDUCED = RESULTS / "reduced"


class Told:
    """Cells whose changes are given: (method, kind) -> [(low, high) of each seed], after ten edits."""

    seeds = (0, 1)

    def __init__(self, changes, efficacy=None, against=None, moved=None, early=None, same=None):
        self.given, self.other, self.norms, self.early = changes, against or {}, moved or {}, early or {}
        self.em, self.same = efficacy or {}, same or {}
        self.methods = list(dict.fromkeys(method for method, _ in changes))

    def checkpoints(self, method):
        return [1, 10]

    def changes(self, method, n, kind, than=None):
        found = self.other if than else self.early if n == 1 else self.given
        ends = found.get((method, kind))
        return Change(0.5, tuple((low + high) / 2 for low, high in ends), tuple(ends)) if ends else None

    def mean(self, method, n, task, metric):
        return self.em.get(method, 1.0)

    def equals(self, n):
        return self.same

    def moved(self, method, n):
        return self.norms.get(method)


DOWN, UP, NARROW, WIDE = [(-0.3, -0.1)] * 2, [(0.1, 0.3)] * 2, [(-0.01, 0.01)] * 2, [(-0.2, 0.2)] * 2
MIXED = [(-0.3, -0.1), (-0.3, 0.1)]


@pytest.mark.parametrize(
    ("changes", "efficacy", "verdict"),
    [
        ({("ft", "score"): NARROW}, {}, hypotheses.HOLDS),
        ({("ft", "score"): NARROW, ("rome", "score"): WIDE}, {}, hypotheses.OPEN),
        ({("ft", "score"): WIDE, ("ft", "bits_per_byte"): DOWN}, {}, hypotheses.FAILS),
        ({("ft", "score"): MIXED}, {}, hypotheses.OPEN),
        ({("ft", "score"): NARROW, ("ft", "bits_per_byte"): MIXED}, {}, hypotheses.OPEN),
        ({("ft", "score"): [(-0.02, -0.01), (-0.01, 0.01)]}, {}, hypotheses.OPEN),
        ({("ft", "score"): NARROW, ("kn", "score"): DOWN}, {"kn": 0.0}, hypotheses.HOLDS),
    ],
)
def test_a_handful(changes, efficacy, verdict):
    assert hypotheses.handful(Told(changes, efficacy)).verdict == verdict


def test_a_handful_tells_the_sizes_and_counts_equal_cells_once():
    changes = {("memit", "score"): DOWN, ("prune_memit", "score"): DOWN, ("ft", "bits_per_byte"): [(-0.03, -0.01)] * 2}
    why = hypotheses.handful(Told(changes, same={"prune_memit": "memit"})).why
    assert why.startswith("2 methods wrote") and "`prune_memit`" not in why
    assert "`memit` (mean score −0.20)" in why and "`ft` (bits per byte −0.020)" in why


@pytest.mark.parametrize(
    ("rome", "memit", "verdict"),
    [
        (UP, UP, hypotheses.FAILS),
        (DOWN, NARROW, hypotheses.HOLDS),
        (UP, DOWN, hypotheses.OPEN),
        (WIDE, WIDE, hypotheses.OPEN),
    ],
)
def test_the_control(rome, memit, verdict):
    against = {("random_rome", "score"): rome, ("random_memit", "score"): memit}
    assert hypotheses.random_hurts(Told({}, against=against)).verdict == verdict


@pytest.mark.parametrize(
    ("rome", "r_rome", "against", "verdict"),
    [
        (DOWN, NARROW, UP, hypotheses.HOLDS),
        (DOWN, DOWN, WIDE, hypotheses.FAILS),
        (DOWN, DOWN, UP, hypotheses.IN_PART),
        (WIDE, NARROW, UP, hypotheses.OPEN),
    ],
)
def test_rome_breaks(rome, r_rome, against, verdict):
    cells = Told({("rome", "score"): rome, ("r_rome", "score"): r_rome}, against={("r_rome", "score"): against})
    assert hypotheses.rome_breaks(cells).verdict == verdict


@pytest.mark.parametrize(
    ("change", "efficacy", "verdict"),
    [(NARROW, 0.95, hypotheses.HOLDS), (NARROW, 0.5, hypotheses.OPEN), (DOWN, 1.0, hypotheses.FAILS)],
)
def test_remembering(change, efficacy, verdict):
    assert hypotheses.remembering(Told({("memit_seq", "score"): change}, {"memit_seq": efficacy})).verdict == verdict


TEXT_AND_ANSWERS = ("gold_logprob", "bits_per_byte")


def losses(order, **same):
    """Methods of growing norms, and what they lost."""
    methods = [f"m{i}" for i in range(len(order))]
    given = {(m, kind): [(-i - 1, -i)] * 2 for m, i in zip(methods, order, strict=True) for kind in TEXT_AND_ANSWERS}
    return Told(given, moved={m: 0.1 * (i + 1) for i, m in enumerate(methods)}, same=same)


@pytest.mark.parametrize(
    ("order", "verdict"),
    [
        (range(12), hypotheses.HOLDS),
        (range(12)[::-1], hypotheses.FAILS),
        ([0, 9, 1, 7, 3, 5, 10, 2, 8, 4, 6, 11], hypotheses.OPEN),
    ],
)
def test_norms_and_damage(order, verdict):
    cells = losses(order)
    assert hypotheses.norm_predicts(cells, cells.methods).verdict == verdict


def test_norms_and_damage_are_told_of_what_is_an_observation_of_its_own():
    cells = losses(range(12), m3="m2", m4="m2")
    found = hypotheses.norm_predicts(cells, cells.methods[1:])
    assert "over 9 methods" in found.why and not {"`m0`", "`m3`", "`m4`"} & set(re.findall("`m[0-9]+`", found.why))
    this = form("reduced")
    labels = list(this.study["methods"])
    assert this.controls(labels) == ["random_rome", "random_memit"]
    assert set(labels) - set(this.bases(labels)) == {
        "random_rome", "random_memit", "locft", "prune_memit", "rect_memit", "blue", "nas",
    }  # fmt: skip
    assert this.variants(labels) == ["locft", "blue", "nas"]


def test_cells_that_are_equal_to_the_bit_are_known():
    """PRUNE's threshold is not reached by ten edits, and memit_seq has no keys to remember at the first."""
    cells = Cells(REDUCED)
    assert cells.equals(1) == {"memit_seq": "memit", "prune_memit": "memit"}
    assert cells.equals(10) == {"prune_memit": "memit"}
    assert hypotheses.distinct(cells, ["rome", "prune_memit", "memit", "nas"], 10) == ["rome", "prune_memit", "nas"]


@pytest.mark.parametrize(
    ("early", "late", "verdict"),
    [
        (
            {("rome", "bits_per_byte"): DOWN},
            {("rome", "bits_per_byte"): DOWN, ("rome", "score"): DOWN},
            hypotheses.HOLDS,
        ),
        ({("rome", "score"): DOWN}, {("rome", "score"): DOWN, ("rome", "bits_per_byte"): DOWN}, hypotheses.FAILS),
        ({}, {("rome", "score"): DOWN, ("rome", "bits_per_byte"): DOWN}, hypotheses.OPEN),
        ({("rome", "bits_per_byte"): DOWN}, {("rome", "bits_per_byte"): DOWN}, hypotheses.OPEN),
    ],
)
def test_perplexity_warns(early, late, verdict):
    assert hypotheses.perplexity_warns(Told(late, early=early)).verdict == verdict


def test_chat():
    def facts(inside):
        return {"facts": {str(i): {"text": {"text": {"em": 1}, "chat": {"em": int(i < inside)}}} for i in range(12)}}

    assert hypotheses.not_in_chat(facts(2)).verdict == hypotheses.HOLDS
    assert hypotheses.not_in_chat(facts(6)).verdict == hypotheses.IN_PART
    assert hypotheses.not_in_chat(facts(10)).verdict == hypotheses.OPEN


def test_a_rule_without_its_methods_has_no_verdict():
    chat = {"facts": {"0": {"text": {"text": {"em": 1}, "chat": {"em": 1}}}}}
    cells = Told({("rome", "score"): DOWN, ("r_rome", "score"): DOWN}, against={("r_rome", "score"): WIDE})
    cells.checkpoints = lambda method: [1, 10] if method in ("rome", "r_rome") else []
    found = {each.claim: each.verdict for each in hypotheses.all_verdicts(cells, chat, form("reduced"))}
    assert found["A norm-matched random change hurts as much"] == hypotheses.UNMEASURED
    assert found["ROME breaks and R-ROME does not"] == hypotheses.FAILS


def test_a_cell_that_is_missing_is_named(tmp_path):
    """And its row is no row of the tables: a mean over the seeds that are there would flatter."""
    cells = tmp_path / "cells"
    shutil.copytree(REDUCED, cells)
    for file in cells.glob("all-seed1/memit-*.json"):
        file.unlink()
    found = Cells(cells)
    assert found.at("memit", 10) == [] and found.at("rome", 10)
    assert any(
        line.startswith("after 10 edits, seed 1, ") and "`memit`" in line
        for line in tables.left_out(found, form("reduced"))
    )
    assert "| `memit` |" not in tables.main_table(found)
