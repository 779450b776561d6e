"""The model's chat template around a question, put there by the task itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit.errors import UserError
from lm_eval_edit.harness import exact_requests
from lm_eval_edit.tasklib.shorten import budget_of

_ADVICE = "ask for edithurt_wild instead, or give a tokenizer that has one"


def problem(metadata: Mapping[str, Any]) -> str | None:
    """Why the model that a run's arguments name cannot be asked inside its template; None where nothing is known."""
    budget = budget_of(dict(metadata), 0)
    if budget is None or getattr(budget.tokenizer, "chat_template", None):
        return None
    name = getattr(budget.tokenizer, "name_or_path", "") or type(budget.tokenizer).__name__
    return f"edithurt_wild_chat: the tokenizer of this model ({name}) has no chat template; {_ADVICE}"


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
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"edithurt_wild_chat: this model ({type(lm).__name__}) has no chat template: {error}; {_ADVICE}"
        ) from error
