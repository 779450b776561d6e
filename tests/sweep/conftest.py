"""A small sweep and a stand-in for vLLM, of the tests of served sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_edit.sweep import engine, evaluation
from tests.support import stand_in_vllm
from tests.support.served_sweeps import checked_sweep, make_world, quick_index


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


@pytest.fixture(scope="module")
def local(served_world, tmp_path_factory) -> Path:
    """That sweep by the engine of this process."""
    root = tmp_path_factory.mktemp("local") / "sweep"
    assert not engine.run_sweep(checked_sweep(served_world, root), device="cpu", progress=False).failed
    return root
