"""The kinds of pictures: what of a sweep each needs, and the pictures that apply to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.plots.bars import bars
from lm_eval_edit.plots.choice import Choice, choose
from lm_eval_edit.plots.curves import methods, norms
from lm_eval_edit.plots.curves import tasks as task_curves
from lm_eval_edit.plots.grids import grids
from lm_eval_edit.plots.picture import Picture, drawing
from lm_eval_edit.plots.series import joined
from lm_eval_edit.plots.tradeoff import tradeoff
from lm_eval_edit.sweep.reading import Sweep

_KINDS: dict[str, tuple[str, Callable[[Choice], list[Picture]]]] = {
    "methods": ("two methods or more with finished cells on the same model and facts", methods),
    "tasks": ("a row that edits in sequence", task_curves),
    "batch": ("a row with edit_batch_size: all", bars),
    "operations": ("a row in sequence with an edit_batch_size above 1", grids),
    "tradeoff": ("a finished cell with edit quality and scores", tradeoff),
    "norms": ("a finished cell with the norms of its edits", norms),
}
#: Kind -> what of a folder it needs.
KINDS = {name: needs for name, (needs, _) in _KINDS.items()}


def figures(
    sweep: Sweep,
    *,
    kinds: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    metric: str | None = None,
    choices: Sequence[Choice] | None = None,
) -> list[Picture]:
    """The pictures that apply to a sweep.

    Args:
        kinds: Of `KINDS`; all by default.
        tasks, metric: As `choose` takes them.
        choices: What `choose` returned, instead of the two.

    Raises:
        UserError: matplotlib is missing, an unknown kind, nothing to draw, or as `choose`.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"{kind}: no such kind of figure.{nearest(kind, KINDS)} Known are {', '.join(KINDS)}")
    choices = choices or choose(sweep, tasks, metric)
    with drawing():
        pictures = [picture for kind in kinds or KINDS for picture in _drawn(kind, choices)]
    if not pictures:
        needed = "; ".join(f"{kind} needs {KINDS[kind]}" for kind in kinds or KINDS)
        raise UserError(f"{sweep.root}: nothing to draw; {needed}")
    return pictures


def _drawn(kind: str, choices: Sequence[Choice]) -> Iterator[Picture]:
    """The pictures of one kind; where there are several metrics, the name of a picture ends with its own."""
    for choice in choices[:1] if kind == "norms" else choices:  # weights have no metric
        for picture in _KINDS[kind][1](choice):
            named = len(choices) > 1 and kind != "norms"
            yield replace(picture, name=f"{picture.name}-{joined([choice.metric])}") if named else picture
