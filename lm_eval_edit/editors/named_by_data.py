"""Data may name an editor, but never choose what code is imported: whoever wrote a ledger would run what they like."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lm_eval_edit.errors import UserError

_importable: ContextVar[Collection[str] | None] = ContextVar("importable", default=None)  # None: whatever is named


@contextmanager
def names_out_of_data(given: Collection[str] = ()) -> Iterator[None]:
    """A context for editors named by data (a ledger, a file), which must not choose what code is imported.

    Within it only the registry is looked up: the built-in editors and those of installed packages.

    Args:
        given: `module:Class` names that the user has given, which may be imported all the same.
    """
    before = _importable.set(frozenset(given))
    try:
        yield
    finally:
        _importable.reset(before)


def refuse_code_of_data(name: str, what: str) -> None:
    """Raise where code is to be imported that only data name.

    Raises:
        UserError: within `names_out_of_data`, unless the user has given the name as well.
    """
    allowed = _importable.get()
    if allowed is not None and name not in allowed:
        raise UserError(
            f"{what} is named by data, and no code is imported because data name it; name it yourself beside them"
        )
