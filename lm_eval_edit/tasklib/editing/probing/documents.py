"""The documents of `edithurt_probing`, made of one fact each; `editing.documents` has the facts and what all share.

negation   each negated prompt of the fact: `plain` is the prompt itself, `target` and `other` continue the negated one
factcheck  the fact with its eight questions (`frames.checks`)
wild       the fact's question, or its prompt where it has none; `wild_chat` the same inside the chat template
reversed   each question of the inverse relation that the record has
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from lm_eval_edit.facts.chat import said
from lm_eval_edit.facts.fact import Fact, in_clear
from lm_eval_edit.facts.portability import REVERSED
from lm_eval_edit.facts.separators import continuing
from lm_eval_edit.tasklib.editing.probing import frames

Document = dict[str, Any]

GROUP = "edithurt_probing"
CHAT = "wild_chat"


def true_object(fact: Fact) -> str | None:
    """o, where it is known and another one than o*."""
    true = (fact.target_true or "").strip()
    return true if true and true != fact.target_new.strip() else None


def _of(fact: Fact, edit: int, **fields: Any) -> Document:
    return {"fact_id": fact.id, "edit": edit, "subject": fact.subject, **fields}


def negation(fact: Fact, edit: int, in_chat: bool = False) -> list[Document]:
    """Each negated prompt of the fact, with the prompt itself.

    Args:
        in_chat: Whether facts are edited inside the chat template, where a user asks the question of one that has it.
    """
    true = true_object(fact)
    if in_chat and (turn := said(fact)) != fact.text:
        fact = replace(fact, prompt=turn, subject_at=None, separator=None)
    return [
        _of(
            fact,
            edit,
            frame=frame,
            prompt=prompt,
            target=frames.negated(fact, prompt, fact.target_new),
            other=None if true is None else frames.negated(fact, prompt, true),
            plain=fact.text,
            plain_target=fact.target,
            plain_other=None if true is None else fact.continuing(fact.text, true),
        )
        for frame, prompt in frames.negations(fact)
    ]


def factcheck(fact: Fact, edit: int) -> list[Document]:
    """The fact with its eight questions, if its true object is known."""
    true = true_object(fact)
    if true is None:
        return []
    checks = list(frames.checks(fact, true))
    first = checks[0]
    return [
        _of(
            fact,
            edit,
            prompt=first.prompt,
            target=continuing(first.prompt, first.right),
            other=continuing(first.prompt, first.wrong),
            new=fact.target_new.strip(),
            old=true,
            checks=[asdict(check) for check in checks],
        )
    ]


def wild(fact: Fact, edit: int) -> list[Document]:
    """The fact as a question; its own prompt where it has none."""
    asked = (fact.question or "").strip()
    prompt = in_clear(asked, fact.subject) if asked else fact.text
    true = true_object(fact)
    return [
        _of(
            fact,
            edit,
            form="question" if frames.asks(prompt) else "prompt",
            prompt=prompt,
            target=_answering(fact, prompt, fact.target_new),
            other=None if true is None else _answering(fact, prompt, true),
            answers=[fact.target_new.strip()],
            old=[] if true is None else [true],
        )
    ]


def _answering(fact: Fact, prompt: str, text: str) -> str:
    return fact.continuing(prompt, text) if prompt == fact.text else continuing(prompt, text)


def reversed_relation(fact: Fact, edit: int) -> list[Document]:
    """Each question of the inverse relation that the fact's record has."""
    return [
        _of(
            fact,
            edit,
            form="question" if frames.asks(prompt) else "prompt",
            prompt=prompt,
            target=continuing(prompt, answers[0]),
            other=None,
            answers=answers,
            old=[],
        )
        for question in fact.portability
        if question.kind == REVERSED
        and (prompt := in_clear(question.prompt, fact.subject))
        and (answers := [each for each in question.answers if each.strip()])
    ]


#: Task -> its documents of one fact, and what a fact without any lacks.
KINDS: dict[str, tuple[Callable[[Fact, int], list[Document]], str]] = {
    "negation": (negation, "prompt"),
    "factcheck": (factcheck, "true object beside the new one"),
    "wild": (wild, "prompt"),
    CHAT: (wild, "prompt"),
    "reversed": (reversed_relation, "question of the inverse relation (portability of kind reversed)"),
}
#: Those of the group; the others are asked by their own names.
IN_GROUP = ("negation", "factcheck", "wild")
#: Task -> the metrics that a document without a true object has no value of, as the subject of a sentence.
AGAINST_OTHER = {
    "negation": "prob_answered, prob_negated, answered_old and shortcut_old leave",
    "wild": "old leaves",
    CHAT: "old leaves",
}


def prompts(doc: Document) -> list[str]:
    """All texts that a document asks."""
    checks = [check["prompt"] for check in doc.get("checks") or ()]
    return checks or [doc["prompt"], *([doc["plain"]] if "plain" in doc else [])]
