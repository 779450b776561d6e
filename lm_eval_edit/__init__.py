"""lm-eval-edit: what did editing this language model's knowledge do to everything else it could do?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_edit.editing import EditError, edit_model
    from lm_eval_edit.errors import ConfigurationError, UserError
    from lm_eval_edit.fact_sources import load_facts
    from lm_eval_edit.facts import Fact, Facts, Probe
    from lm_eval_edit.ledger import Ledger
    from lm_eval_edit.model import EditedHFLM
    from lm_eval_edit.model_source import load_source
    from lm_eval_edit.schedule import EditSchedule

__version__ = "0.1.0"

# Loaded on first use: the command line and the start-up hook import this package and must not wait for torch.
_WHERE = {
    "ConfigurationError": "errors",
    "EditError": "editing",
    "EditSchedule": "schedule",
    "EditedHFLM": "model",
    "Fact": "facts",
    "Facts": "facts",
    "Ledger": "ledger",
    "Probe": "facts",
    "UserError": "errors",
    "edit_model": "editing",
    "load_facts": "fact_sources",
    "load_source": "model_source",
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
