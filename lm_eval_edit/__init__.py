"""lm-eval-edit: what did editing this language model's knowledge do to everything else it could do?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_edit._support.old_names import keep_old_names

if TYPE_CHECKING:
    from lm_eval_edit.edits.guards import EditError
    from lm_eval_edit.edits.ledger import Ledger
    from lm_eval_edit.edits.run import edit_model
    from lm_eval_edit.edits.schedule import EditSchedule
    from lm_eval_edit.edits.source import load_source
    from lm_eval_edit.errors import ConfigurationError, UserError
    from lm_eval_edit.facts.fact import Fact, Facts, Probe
    from lm_eval_edit.facts.sources import load_facts
    from lm_eval_edit.model import EditedHFLM

__version__ = "0.2.0"

keep_old_names()

# Loaded on first use: the command line and the start-up hook import this package and must not wait for torch.
_WHERE = {
    "ConfigurationError": "errors",
    "EditError": "edits.guards",
    "EditSchedule": "edits.schedule",
    "EditedHFLM": "model",
    "Fact": "facts.fact",
    "Facts": "facts.fact",
    "Ledger": "edits.ledger",
    "Probe": "facts.fact",
    "UserError": "errors",
    "edit_model": "edits.run",
    "load_facts": "facts.sources",
    "load_source": "edits.source",
}

__all__ = [
    "ConfigurationError",
    "EditError",
    "EditSchedule",
    "EditedHFLM",
    "Fact",
    "Facts",
    "Ledger",
    "Probe",
    "UserError",
    "edit_model",
    "load_facts",
    "load_source",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
