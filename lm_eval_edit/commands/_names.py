"""Lists as they stand on a command line."""

from __future__ import annotations


def names(given: str | None) -> list[str] | None:
    """Names separated by commas; None where nothing is given."""
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]
