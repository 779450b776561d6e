"""What may not pass unseen: edits that change nothing, weights that are not finite, edits that did not take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from lm_eval_edit.editors.base import EditResult
from lm_eval_edit.edits.answers import Answer
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact

logger = logging.getLogger("lm_eval_edit")


class EditError(UserError):
    """An edit that must not be used: the weights did not change, or hold values that are not finite."""


class NotFiniteError(EditError):
    """An edit whose values, or the weights with it, are not finite: the model has collapsed."""


class NotTakenError(EditError):
    """Fewer edits took than `min_success` asks for."""


def check_finite(result: EditResult, facts: Sequence[Fact]) -> None:
    """Refuse an edit before its values come into the weights.

    Raises:
        NotFiniteError: a value that is not finite.
    """
    for name, delta in result.deltas.items():
        if not all(bool(torch.isfinite(t).all()) for t in delta.tensors().values()):
            raise NotFiniteError(
                f"the edit of {', '.join(str(fact.id) for fact in facts[:3])} gave values for {name} that are not "
                f"finite; the model has been restored. Smaller steps (v_lr) or fewer edits may help"
            )


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """The answers of some facts as two means: the share of right tokens, and of facts whose every token is right."""
    n = len(answers)
    if not n:
        return {"n": 0}
    return {
        "n": n,
        "token_acc": sum(answer.token_acc for answer in answers) / n,
        "em": sum(answer.exact for answer in answers) / n,
    }


def guard(ledger: Ledger) -> dict[str, Any]:
    """Check the weights after the operations applied. Returns verdicts for the results.

    Raises:
        EditError: no weight changed, or a weight is not finite.
    """
    n_edits, changed = ledger.applied_totals()
    if not ledger.applied:
        return {"weights_changed": False, "weights_finite": True, "answers_changed": 0, "answers_changed_ok": True}
    problems = ledger.weights.problems()
    unchanged = [p for p in problems if p.endswith("did not change")]
    broken = [p for p in problems if p not in unchanged]
    if broken:
        raise NotFiniteError(f"after {n_edits} edits {'; '.join(broken)}. The model has been restored")
    if not ledger.weights.touched or len(unchanged) == len(ledger.weights.touched):
        raise EditError(f"{n_edits} edits changed no weight; the model is the unedited one")
    if not changed:
        logger.warning(
            "none of the %d edited prompts is answered differently after its edit: the edits did not take",
            n_edits,
        )
    return {
        "weights_changed": True,
        "weights_finite": True,
        "answers_changed": changed,
        "answers_changed_ok": changed > 0,
    }
