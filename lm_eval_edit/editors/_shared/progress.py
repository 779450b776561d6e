"""Progress within one operation: a bar for work that takes more than a moment, gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

DELAY = 2.0  # seconds before a bar appears: what is done by then needs none


def steps(over: Iterable[Any] | None, what: str, unit: str, *, show: bool, total: int | None = None) -> tqdm[Any]:
    """A progress bar below that of the schedule.

    Args:
        over: What to go through; None for a bar that is moved on by `update`.
        what: What is done, for its left end.
        unit: What is counted.
        show: Whether there is a bar at all (`EditContext.progress`).
        total: How many there are, where `over` does not know.
    """
    return tqdm(over, desc=what, unit=unit, total=total, disable=not show, leave=False, delay=DELAY)
