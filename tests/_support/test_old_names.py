"""Module names of release 0.1."""

from __future__ import annotations

import importlib

import pytest

from lm_eval_edit._support.old_names import MOVED
from tests.support.processes import python

HEAVY = ("sweep", "plots", "easyedit")  # Ray, matplotlib


@pytest.mark.parametrize("old", [name for name in MOVED if not any(heavy in name for heavy in HEAVY)])
def test_an_old_name_is_the_new_module(old):
    new = importlib.import_module(f"lm_eval_edit.{MOVED[old]}")
    spec = new.__spec__
    with pytest.warns(DeprecationWarning, match=f"lm_eval_edit.{old} is now lm_eval_edit.{MOVED[old]}"):
        found = importlib.import_module(f"lm_eval_edit.{old}")
    assert found is new and new.__spec__ is spec and new.__name__ == f"lm_eval_edit.{MOVED[old]}"


def test_scripts_of_before_run():
    script = (
        "from lm_eval_edit.fact_sources import load_facts\n"
        "from lm_eval_edit.facts import Fact, parse_record\n"
        "from lm_eval_edit.cost import estimate\n"
        "from lm_eval_edit.delta import LowRankDelta, linear_update, load_deltas, save_deltas\n"
        "from lm_eval_edit import statistics\n"
        "print(len(load_facts('demo')), statistics.__name__)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "lm_eval_edit.comparison.statistics"


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lm_eval_edit.never_was")
