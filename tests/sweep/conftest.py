"""A small sweep and a stand-in for vLLM, of the tests of served sweeps."""

from __future__ import annotations

import pytest

from lm_eval_edit.sweep import evaluation
from tests.support import stand_in_vllm
from tests.support.served_sweeps import make_world, quick_index


@pytest.fixture(scope="module")
def tasks_at_hand():
    """The tests' own tasks are all tasks while the tests of a module run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "task_manager", quick_index)
        yield


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """The stand-in is the installed vLLM while the tests of a module run."""
    with stand_in_vllm.installed(tmp_path_factory.mktemp("vllm")):
        yield


@pytest.fixture(scope="module")
def served_world(tmp_path_factory):
    """Model, facts and tasks of a sweep that is served."""
    return make_world(tmp_path_factory.mktemp("world"))
