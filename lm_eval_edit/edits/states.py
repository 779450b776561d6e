"""Requests that want the weights in a certain state: the unedited ones, or those after the first k operations.

A request carries its state as an argument more than the harness's own, so it is in the logged samples and in the key
of the response cache, and a model that knows of no states refuses it instead of answering with the wrong weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from lm_eval_edit.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from lm_eval_edit.edits.ledger import Ledger

STATE = "after_operations"
UNEDITED = 0


def in_state(arguments: tuple[Any, ...], n_operations: int) -> tuple[Any, ...]:
    """The arguments of a request to be answered after the first n operations (0: unedited)."""
    return (*arguments, {STATE: n_operations})


def wanted_state(request: Instance) -> int | None:
    """After how many operations a request is to be answered; None: as the weights stand."""
    last = request.args[-1]
    return last.get(STATE) if isinstance(last, dict) else None


def answer_by_state(
    requests: Sequence[Instance],
    ledger: Ledger | None,
    answer: Callable[[list[Instance], bool], list[Any]],
    moved: Callable[[], None],
) -> list[Any]:
    """Answer requests, each in the state it wants: state by state, from the fewest operations to the most.

    Whatever happens, the weights end in the state they were in, bit for bit.

    Args:
        requests: With or without a state.
        ledger: The model's edits; None for a model without any.
        answer: (requests, hide the progress) -> answers in the same order, with the weights as they stand.
        moved: Called whenever the weights have come into another state.

    Returns:
        The answers, in the order of the requests.

    Raises:
        UserError: a state that the model has not reached.
    """
    present = ledger.applied if ledger is not None else 0
    groups: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        wanted = wanted_state(request)
        groups.setdefault(present if wanted is None else wanted, []).append(index)
    if groups and max(groups) > present:
        raise UserError(
            f"a task asks for the weights after {max(groups)} operations, this model carries {present}: "
            f"give the task the editor, n_edits and edit_batch_size of the model"
        )
    answers: list[Any] = [None] * len(requests)

    def fill(indices: list[int], hide: bool) -> None:
        found = answer([_without_state(requests[index]) for index in indices], hide)
        for index, each in zip(indices, found, strict=True):
            answers[index] = each

    if present in groups:
        fill(groups.pop(present), hide=False)
    if not groups:
        return answers
    assert ledger is not None, "a model without edits is in one state only, and its answers are there"
    try:
        for state in tqdm(sorted(groups), desc="asking earlier states of the weights", unit="state"):
            ledger.apply(state)
            moved()
            fill(groups[state], hide=True)
    finally:
        ledger.apply(present)
        moved()
    return answers


def _without_state(request: Instance) -> Instance:
    if wanted_state(request) is None:
        return request
    plain = copy(request)
    plain.arguments = request.args[:-1]
    return plain
