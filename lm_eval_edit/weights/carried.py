"""Which edits a model object carries, noted on the object itself, so that whoever edits it next can know.

A copy of a model (`copy.deepcopy`, pickling) carries the edits as well, but nobody has its unedited weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_NOTE = "_lm_eval_edit_carried"


class _Note:
    """What was applied to a model and not taken off again, first to last.

    Args:
        appliers: The objects that applied it; None for what a copied model brought along.
    """

    def __init__(self, appliers: list[Any] | None = None):
        self.appliers = list(appliers or [])

    def _of_a_copy(self) -> list[None]:
        return [None] * bool(self.appliers)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Note:
        return _Note(self._of_a_copy())

    def __reduce__(self) -> tuple[type[_Note], tuple[list[None]]]:
        return _Note, (self._of_a_copy(),)


def carried_by(model: nn.Module) -> list[Any]:
    """The objects whose edits a model carries, first to last; None stands for those of the model it is a copy of."""
    note = model.__dict__.get(_NOTE)
    return list(note.appliers) if note is not None else []


def note_applied(model: nn.Module, applier: Any) -> None:
    """Note that a model carries edits of `applier` from now on."""
    note = model.__dict__.setdefault(_NOTE, _Note())
    if not any(applier is other for other in note.appliers):
        note.appliers.append(applier)


def note_restored(model: nn.Module, applier: Any) -> None:
    """Note that it carries none of `applier` any more."""
    note = model.__dict__.get(_NOTE)
    if note is not None:
        note.appliers = [other for other in note.appliers if other is not applier]
        if not note.appliers:
            del model.__dict__[_NOTE]
