"""Answers of `edithurt_portability` -> the metrics of a document; tasks/edithurt_portability/README.md defines each.

A response comes as [role, tokens, response], as in `editing.metrics`, one for each question of the item, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from lm_eval_edit.facts.portability import ALL, KINDS
from lm_eval_edit.tasklib.editing.documents import Document
from lm_eval_edit.tasklib.editing.metrics import SAYS, Response, with_errors
from lm_eval_edit.tasklib.editing.probing import said

Match = Callable[[str, Sequence[str]], bool]


def portability(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`score` is `contains`: of what was said, the first sentence or line counts."""
    texts = [text for role, _, text in results if role == SAYS]
    objects = [list(chain(*every)) for every in wanted(doc)]
    first = [said.answer(text, names) for text, names in zip(texts, objects, strict=True)]
    own = [
        said.without_echo(text, (prompt, doc["subject"]), names)
        for text, prompt, names in zip(first, doc["prompts"], objects, strict=True)
    ]
    answered = _item(doc, own, said.contains)
    return with_errors(
        doc["fact_id"],
        score=answered,
        contains=answered,
        # How several answers are put together, nobody says.
        em=None if wants_several(doc) else _item(doc, first, said.exact),
        valid=float(all(map(said.is_said, first))),
    ) | _of_kinds(doc, answered)


def wanted(doc: Document) -> list[list[list[str]]]:
    """For each question of an item what has to be said, one name of each: its answer, and those that belong to it."""
    also = doc.get("also") or [[] for _ in doc["answers"]]
    return [[names, *more] for names, more in zip(doc["answers"], also, strict=True)]


def wants_several(doc: Document) -> bool:
    """Whether a question of an item has several answers that have to be said."""
    return any(len(every) > 1 for every in wanted(doc))


def _item(doc: Document, answers: Sequence[str], match: Match) -> float:
    """Whether an item is answered: any of its questions, or all, as it says."""
    right = [all(match(answer, names) for names in every) for answer, every in zip(answers, wanted(doc), strict=True)]
    return float(all(right) if doc["condition"] == ALL else any(right))


def _of_kinds(doc: Document, answered: float) -> dict[str, Any]:
    """Per kind (answered, 1), or (0, 0) where the item is of another: every document has a value that can be summed."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        is_it = doc["kind"] == kind
        found[kind] = (answered, 1.0) if is_it else (0.0, 0.0)
        found[f"{kind}_stderr"] = (doc["fact_id"], answered if is_it else None)
    return found
