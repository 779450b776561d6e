"""Logged samples in the forms that releases of the harness write them."""

from __future__ import annotations

from typing import Any


def responses(logged: Any) -> Any:
    """The `filtered_resps` of a sample, one response a request.

    From 0.5 on the harness logs a list for each request, one response a repeat; where each list has one, this is what
    0.4 logs.
    """
    if isinstance(logged, list) and logged and all(isinstance(each, list) and len(each) == 1 for each in logged):
        return [each[0] for each in logged]
    return logged
