"""Module names of release 0.1, when all lay side by side: they still import, with a DeprecationWarning, until 0.3.

Python names that are for others to use are in `lm_eval_edit.__all__` and have not moved; this is for scripts that took
something else from where it lay.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = "lm_eval_edit."
#: Old name -> new name, both below `lm_eval_edit`.
MOVED = {
    "_continuation": "facts.tokens",
    "_differences": "_support.differences",
    "_files": "_support.files",
    "_hooks": "_startup.hooks",
    "_moment_files": "moments.files",
    "aggregations": "comparison.aggregations",
    "agreement": "tasklib.editing.agreement",
    "answers": "edits.answers",
    "architecture": "models.architecture",
    "baseline": "comparison.baseline",
    "check": "comparison.check",
    "check_reports": "comparison.check_reports",
    "collect": "moments.collect",
    "compare": "comparison.compare",
    "comparison_json": "comparison.as_json",
    "comparison_tables": "comparison.tables",
    "corpus": "moments.corpus",
    "cost_editing": "cost.editing",
    "cost_sweeps": "sweep.costs",
    "cost_work": "cost.work",
    "delta": "weights.delta_files",
    "editing": "edits.run",
    "editors._difference": "editors._shared.difference",
    "editors._draws": "editors._shared.draws",
    "editors._easyeditor": "editors.easyeditor.running",
    "editors._finetune": "editors._shared.finetune",
    "editors._forward": "editors._shared.forward",
    "editors._isolation": "editors._shared.isolation",
    "editors._keys": "editors._shared.keys",
    "editors._last_token": "editors._shared.last_token",
    "editors._mend_archive": "editors.mend.archive",
    "editors._mend_batch": "editors.mend.batch",
    "editors._mend_network": "editors.mend.network",
    "editors._rows": "editors._shared.rows",
    "editors._target": "editors._shared.target",
    "editors._wrapping": "editors._shared.wrapping",
    "editors.easyedit": "editors.easyeditor.editor",
    "editors.mend_training": "editors.mend.training",
    "fact_sources": "facts.sources",
    "flips": "comparison.flips",
    "group_means": "comparison.group_means",
    "ledger": "edits.ledger",
    "model_source": "edits.source",
    "our_tasks": "harness.our_tasks",
    "pairing": "comparison.pairing",
    "parallel": "edits.processes",
    "results": "comparison.results",
    "schedule": "edits.schedule",
    "scheduled": "edits.scheduled",
    "second_moments": "moments.second_moments",
    "states": "edits.states",
    "statistics": "comparison.statistics",
    "tasklib.aggregate": "tasklib.suite.aggregate",
    "tasklib.catalogue": "tasklib.suite.catalogue",
    "tasklib.documents": "tasklib.suite.documents",
    "tasklib.editing_documents": "tasklib.editing.documents",
    "tasklib.editing_figures": "tasklib.editing.figures",
    "tasklib.editing_metrics": "tasklib.editing.metrics",
    "tasklib.editing_tasks": "tasklib.editing.tasks",
    "tasklib.hub": "tasklib.records.hub",
    "tasklib.layouts": "tasklib.records.layouts",
    "tasklib.metrics": "tasklib.suite.metrics",
    "tasklib.ner": "tasklib.suite.ner",
    "tasklib.prompts": "tasklib.suite.prompts",
    "tasklib.scoring": "tasklib.suite.scoring",
    "tasklib.sources": "tasklib.suite.sources",
    "training_settings": "editors.mend.training_settings",
    "tasklib.suite.hub": "tasklib.records.hub",
    "tasklib.suite.layouts": "tasklib.records.layouts",
    "versions": "_support.versions",
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        new = MOVED.get(name.removeprefix(_PACKAGE)) if name.startswith(_PACKAGE) else None
        return None if new is None else ModuleSpec(name, _Loader(_PACKAGE + new))


class _Loader(importlib.abc.Loader):
    """Hands out the module of the new name, which keeps its own spec."""

    def __init__(self, new: str):
        self._new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {self._new}; the old name goes in 0.3", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's there


def keep_old_names() -> None:
    """Let the old names be imported. Asked last, so that it costs nothing where a module is found."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
