"""Answers of `edithurt_portability` -> the metrics of a document; tasks/edithurt_portability/README.md defines each.

A response comes as [role, tokens, response], as in `editing.metrics`, one for each question of the item, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval_edit.facts.portability import ALL, KINDS
from lm_eval_edit.tasklib.editing.documents import Document
from lm_eval_edit.tasklib.editing.metrics import SAYS, Response, with_errors
from lm_eval_edit.tasklib.editing.probing import said

Match = Callable[[str, Sequence[str]], bool]


def portability(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`score` is `contains`: of what was said, the first sentence or line counts."""
    texts = [text for role, _, text in results if role == SAYS]
    first = [said.answer(text, right) for text, right in zip(texts, doc["answers"], strict=True)]
    own = [
        said.without_echo(text, (prompt, doc["subject"]), right)
        for text, prompt, right in zip(first, doc["prompts"], doc["answers"], strict=True)
    ]
    answered = _item(doc, own, said.contains)
    return with_errors(
        doc["fact_id"],
        score=answered,
        contains=answered,
        em=_item(doc, first, said.exact),
        valid=float(all(map(said.is_said, first))),
    ) | _of_kinds(doc, answered)


def _item(doc: Document, answers: Sequence[str], match: Match) -> float:
    """Whether an item is answered: any of its questions, or all, as it says."""
    right = [match(answer, aliases) for answer, aliases in zip(answers, doc["answers"], strict=True)]
    return float(all(right) if doc["condition"] == ALL else any(right))


def _of_kinds(doc: Document, answered: float) -> dict[str, Any]:
    """Per kind (answered, 1), or (0, 0) where the item is of another: every document has a value that can be summed."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        is_it = doc["kind"] == kind
        found[kind] = (answered, 1.0) if is_it else (0.0, 0.0)
        found[f"{kind}_stderr"] = (doc["fact_id"], answered if is_it else None)
    return found
