"""The model's chat template around a question, put there by the task itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit.edits.surroundings import template_arguments
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.facts.chat import chat_frame, has_template
from lm_eval_edit.harness import exact_requests
from lm_eval_edit.tasklib.shorten import budget_of

_ADVICE = "ask for edithurt_wild instead, or give a tokenizer that has one"


def problem(metadata: Mapping[str, Any]) -> str | None:
    """Why the model that a run's arguments name cannot be asked inside its template; None where nothing is known."""
    budget = budget_of(dict(metadata), 0)
    if budget is None:
        return None
    tokenizer: Any = budget.tokenizer
    if not has_template(tokenizer):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        return f"edithurt_wild_chat: the tokenizer of this model ({name}) has no chat template; {_ADVICE}"
    found: list[UserError] = []
    for system in (None, "Be brief."):  # which a run may give, and some templates want
        try:
            chat_frame(tokenizer, template_arguments(metadata), system)
        except UserError as error:
            found.append(error)
    return f"edithurt_wild_chat: {found[0]}; {_ADVICE}" if len(found) == 2 else None


def inside(text: str) -> str:
    """A text as the user's turn, with what the model's answer begins behind.

    Raises:
        UserError: the model that is being evaluated has no template, or nobody knows the model.
    """
    lm = exact_requests.asked_model()
    if lm is None:
        raise UserError(
            "edithurt_wild_chat asks for the model's chat template, so it works in lm_eval's `evaluate` alone"
        )
    try:
        return lm.apply_chat_template([{"role": "user", "content": text}])
    except Exception as error:  # no template, or a program of its own, which may fail in any way
        raise UserError(
            f"edithurt_wild_chat: this model ({type(lm).__name__}) has no chat template that shows a user's turn: "
            f"{in_one_line(error)}; {_ADVICE}"
        ) from error
