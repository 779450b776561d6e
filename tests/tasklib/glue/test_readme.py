"""The README's demonstration of RTE's inverted labels, run."""

from __future__ import annotations

import doctest

from lm_eval_edit.harness.our_tasks import tasks_dir


def test_the_demonstration():
    readme = tasks_dir() / "edithurt_glue" / "README.md"
    failed, run = doctest.testfile(str(readme), module_relative=False)
    assert run == 3 and failed == 0
