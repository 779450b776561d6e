"""What differs between two designs or ledgers is named, however long the lists it is in."""

from __future__ import annotations

import copy

import pytest

from lm_eval_edit._support.differences import MOST, WIDTH, differences

EDITORS = [{"label": f"editor_{i}", "args": {"editor": "rome", "layer": i}} for i in range(12)]


def test_one_sentence_a_leaf():
    stored, wanted = {"a": 1, "b": {"c": [5, 10], "d": None}}, {"a": 2, "b": {"c": [5, 20], "d": 0}}
    assert differences(stored, wanted, where="in the folder") == [
        "a is 1 in the folder, 2 now",
        "b.c is [5, 10] in the folder, [5, 20] now",
        "b.d is None in the folder, 0 now",
    ]
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_a_difference_inside_a_long_list_is_named():
    other = copy.deepcopy(EDITORS)
    other[7]["args"]["layer"] = 99
    (line,) = differences({"editors": EDITORS}, {"editors": other})
    assert line == "editors[7].args.layer is 7 in the ledger, 99 now"


def test_what_only_one_of_two_long_lists_has():
    (line,) = differences({"editors": EDITORS}, {"editors": EDITORS[:3] + EDITORS[4:]})
    assert line.startswith("editors has {'label': 'editor_3'") and line.endswith(" only in the ledger")
    (line,) = differences({"editors": EDITORS}, {"editors": [*EDITORS, EDITORS[0]]})
    assert "'editor_0'" in line and line.endswith(" only now"), "there twice, there once"
    both = differences({"n": list(range(100))}, {"n": list(range(50, 151))})
    assert both == [
        "n has 0, 1, 2, 3, 4 and 45 more only in the ledger",
        "n has 100, 101, 102, 103, 104 and 46 more only now",
    ]


def test_thousands_of_differences_are_counted():
    lines = differences({"ids": list(range(1000))}, {"ids": list(range(1, 1001))})
    assert lines[0] == "ids[0] is 0 in the ledger, 1 now" and len(lines) == MOST + 1
    assert lines[-1] == f"ids has {1000 - MOST} more differences"


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("", "a" * 30), ("x" * 500, "y" * 500)])
def test_long_texts_are_shown_where_they_begin_to_differ(old, new):
    (line,) = differences({"text": "s" * 300 + old}, {"text": "s" * 300 + new})
    stored, _, wanted = line.removeprefix("text is ").removesuffix(" now").partition(" in the ledger, ")
    assert stored != wanted and max(map(len, (stored, wanted))) <= WIDTH
