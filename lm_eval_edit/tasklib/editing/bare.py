"""The tasks whose prompts nothing may stand around: they ask as the published scripts do."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from lm_eval_edit.tasklib.editing.generation_inputs import TASK as GENERATION

TASKS = ("edithurt_zsre", GENERATION)


def why_not(name: str) -> str:
    """Why a task of these cannot be asked with something around its prompts, and what to do."""
    return (
        f"{name} asks as the published scripts do, and they know no chat template, system instruction or examples: "
        "leave them out, or ask for edithurt_editing or edithurt_counterfact"
    )


def problems(names: Iterable[str], around: bool) -> list[str]:
    """What a run cannot do, before anything loads.

    Args:
        names: Tasks that it asks for, or patterns of their names.
        around: Whether it puts something around every prompt.
    """
    names = list(names)
    return [why_not(task) for task in TASKS if around and any(fnmatch.fnmatch(task, name) for name in names)]
