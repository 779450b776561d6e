"""The script behind docs/real_model.md: its table, without the model."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "examples")  # it takes functions from its neighbour
        yield importlib.import_module("real_methods")


def measured(script, em, n):
    """One operation on n facts."""
    facts = [dict.fromkeys(script.FIGURES, 0.5) | {"em": em} for _ in range(n)]
    return {"seconds": 3.0 * n, "delta_norm": 2.0, "weight_norm": 20.0, "facts": facts}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_over_fewer_facts_says_so_and_divides_by_them(script):
    rows = {
        "ft": {"measured": [measured(script, 1.0, 1), measured(script, 0.0, 1)]},
        "memit": {"measured": [measured(script, 1.0, 20)]},
        "kn": {"measured": []},
    }
    lines = script.table(rows).splitlines()[2:]
    assert [cells(line) for line in lines] == [
        ["memit", "batch of 20", "1.00", "0.50", "0.50", "0.50", "0.100", "3.0"],
        ["ft", "one alone, 2 facts", "0.50", "0.50", "0.50", "0.50", "0.100", "3.0"],
    ]


def test_the_page_holds_what_was_measured(script):
    """The table of the page is the script's, of the figures that are kept beside it."""
    page = script.DOCS.read_text(encoding="utf-8")
    kept = json.loads(script.DOCS.with_suffix(".json").read_text(encoding="utf-8"))
    assert page.split(script.BEGIN)[1].split(script.END)[0].strip() == script.table(kept)
    about = [row["settings"] for row in kept.values()]
    assert all(one["facts"] == about[0]["facts"] and one["model"] == about[0]["model"] for one in about)


@pytest.mark.parametrize("name", ["sequential_methods"])
def test_the_page_of_methods_holds_what_was_measured(script, name):
    """`script` first: its folder is on the path while it is there."""
    other = importlib.import_module(name)
    page = other.PAGE.read_text(encoding="utf-8")
    kept = json.loads(other.KEPT.read_text(encoding="utf-8"))
    assert page.split(other.BEGIN)[1].split(other.END)[0].strip() == other.table(kept)
    assert len(kept) >= 2
    about = [row["settings"] for row in kept.values()]
    assert all(one[what] == about[0][what] for one in about for what in ("facts", "model", "text", "probes"))
    assert all(len(row["facts"]) == other.N for row in kept.values())
