"""The documents of `edithurt_portability`: questions whose answers follow from the facts of the schedule.

One document for each item: a question, or the questions of one group, of which any or all have to be answered. Beside
what all edit-quality documents have (`documents`):

    kind       of the item (`facts.portability`)
    prompts    its questions in clear, `prompt` being the first
    answers    the right answers of each of them
    also       of each of them, the further answers that have to be said, each with its aliases; in no document where
               none has any
    condition  any, or all

The questions of a case are about all its facts: they are asked where the schedule edits the whole case, in the state
after the last of its edits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.facts.fact import Fact, in_clear
from lm_eval_edit.facts.portability import Question
from lm_eval_edit.facts.separators import continuing

Document = dict[str, Any]

TASK = "portability"
LACKS = "portability question"


def items(fact: Fact) -> list[list[Question]]:
    """The fact's questions, those of a group together, in the order in which the groups begin."""
    found: dict[object, list[Question]] = {}
    for number, question in enumerate(fact.portability):
        found.setdefault(number if question.group is None else question.group, []).append(question)
    return list(found.values())


def of_fact(fact: Fact, edit: int) -> list[Document]:
    """The items of one fact.

    Args:
        fact: Whatever its case.
        edit: After which edit of the schedule, from 0, they are asked.
    """
    docs = []
    for item in items(fact):
        prompts = [in_clear(question.prompt, fact.subject) for question in item]
        first = item[0]
        docs.append(
            {
                "fact_id": fact.id,
                "edit": edit,
                "subject": fact.subject,
                "kind": first.kind,
                "condition": first.condition,
                "prompt": prompts[0],
                "prompts": prompts,
                "answers": [list(question.answers) for question in item],
                "also": [[list(names) for names in question.also] for question in item],
                "target": continuing(prompts[0], first.answers[0]),
                "other": None,
            }
        )
    return docs


def last_edits(scheduled: Sequence[Fact]) -> list[int | None]:
    """For each fact of a schedule the last edit of its case, from 0; None where the schedule has a part of it only."""
    places = {fact.id: place for place, fact in enumerate(scheduled)}
    return [
        place
        if not fact.case
        else None
        if any(each not in places for each in fact.case)
        else max(places[each] for each in fact.case)
        for place, fact in enumerate(scheduled)
    ]


def of_schedule(scheduled: Sequence[Fact]) -> list[list[Document]]:
    """For each fact of a schedule the items that can be asked."""
    by_fact = [
        [] if last is None else of_fact(fact, last) for fact, last in zip(scheduled, last_edits(scheduled), strict=True)
    ]
    if not any(any(doc["also"]) for docs in by_fact for doc in docs):
        for doc in (doc for docs in by_fact for doc in docs):
            del doc["also"]  # as results of before have it: compare pairs documents by their content
    return by_fact


def known(scheduled: Sequence[Fact], by_fact: Sequence[Sequence[Document]]) -> dict[str, Any]:
    """What the results say of the questions: how many facts have none, items by kind, cases that are cut, a hash.

    The hash of the facts leaves questions out, as no edit depends on them.
    """
    asked = {key for fact, docs in zip(scheduled, by_fact, strict=True) if docs for key in (fact.id, *fact.case)}
    docs = [doc for some in by_fact for doc in some]
    return {
        "facts_without": sum(fact.id not in asked for fact in scheduled),
        "cases_cut": len(_cut(scheduled)),
        "by_kind": dict(Counter(doc["kind"] for doc in docs)),
        "questions_sha256": hash_json([_said_of(doc) for doc in docs]),
    }


def _said_of(doc: Document) -> list[Any]:
    also = doc.get("also", ())
    return [doc["prompts"], doc["answers"], doc["condition"], *([also] if any(also) else [])]


def _cut(scheduled: Sequence[Fact]) -> set[tuple[str, ...]]:
    """The cases that the schedule edits in part."""
    return {fact.case for fact, last in zip(scheduled, last_edits(scheduled), strict=True) if last is None}


def told_cut(number: int) -> str:
    """In words: some cases are not asked about."""
    return (
        f"{number} case{'s' * (number > 1)} of the schedule {'are' if number > 1 else 'is'} not asked about, as not "
        f"all facts of the case are edited: n_edits or edit_offset cuts it, or the method or its source passes over one"
    )


def why_none(source: str, scheduled: Sequence[Fact]) -> str:
    """Why there is nothing to ask about a schedule, and what to do."""
    none = f"edithurt_{TASK}: none of the {len(scheduled)} facts of the schedule ({source}) has a {LACKS}"
    if cut := len(_cut(scheduled)):
        return f"{none} that could be asked: {told_cut(cut)}; raise n_edits"
    return f"{none}; docs/facts.md lists the sets that have some. Leave the task out, or give another edit_dataset"
