"""The tasks that ask as released scripts do, which put nothing around a prompt: no chat template, no system turn."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

TASKS = ("edithurt_zsre", "edithurt_counterfact_generation")


def refused(names: Iterable[str]) -> str:
    """What is said where something stands around the prompts of such tasks."""
    names = list(names)
    return (
        f"{' and '.join(names)} ask{'s' * (len(names) == 1)} as the published scripts do, and they know no chat "
        f"template, system instruction or examples: leave them out, or ask for edithurt_editing or edithurt_counterfact"
    )


def problem(asked: Iterable[str], around: bool) -> str | None:
    """Why a run's tasks cannot be asked; None where they can.

    Args:
        asked: Names of tasks, or patterns.
        around: Whether the run puts a chat template or a system instruction around prompts.
    """
    patterns = list(asked)
    names = [task for task in TASKS if any(fnmatch.fnmatchcase(task, pattern) for pattern in patterns)]
    return refused(names) if around and names else None
