"""Raw records -> documents, one function a kind of record; every field a prompt or a metric needs is checked.

A document has the texts of its prompt and

    task    its task
    gold    the right answer, as an index of the task's words
    label   the answer that the published script compares with: `gold`, but for RTE, where it is the other one
    record  which record of its file it is, from 0
    item    which item of the published list it is, from 0 (`sources` adds it)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.glue.catalogue import LETTERS, TASKS
from lm_eval_edit.tasklib.records.fields import ENTAILMENT, each, field, label, strings
from lm_eval_edit.tasklib.records.layouts import Placed, Record

Document = dict[str, Any]


def build(task: str, records: Iterable[Placed]) -> list[Document]:
    """The documents of all records, in their order.

    Raises:
        UserError: Records that lack a needed field or hold something else in it; place and field are named.
    """
    docs = []
    for number, (texts, gold) in enumerate(each(records, _BUILDERS[task])):
        asked = 1 - gold if TASKS[task].inverted else gold
        docs.append({"task": task, **texts, "gold": gold, "label": asked, "record": number})
    return docs


def _pair(place: str, record: Record) -> dict[str, Any]:
    return {name: field(place, record, name, str) for name in ("sentence1", "sentence2")}


def _entailment(place: str, record: Record) -> tuple[dict[str, Any], int]:
    return _pair(place, record), 1 - label(place, record, "label", *ENTAILMENT)


def _paraphrase(place: str, record: Record) -> tuple[dict[str, Any], int]:
    return _pair(place, record), label(place, record, "label")


def _sentence(place: str, record: Record) -> tuple[dict[str, Any], int]:
    return {"sentence": field(place, record, "sentence", str)}, label(place, record, "label")


def _four(place: str, record: Record, name: str) -> list[str]:
    options = strings(place, record, name)
    if len(options) != len(LETTERS):
        raise UserError(f"{place}: the field '{name}' should hold 4 options, got {len(options)}")
    return options


def _mmlu(place: str, record: Record) -> tuple[dict[str, Any], int]:
    answer = field(place, record, "answer", int, str)
    if isinstance(answer, str):
        gold = LETTERS.index(answer) if answer in LETTERS else -1
    else:
        gold = -1 if isinstance(answer, bool) else answer
    if not 0 <= gold < len(LETTERS):
        raise UserError(f"{place}: the field 'answer' should be 0 to 3, or A, B, C or D, got {answer!r}")
    return {"question": field(place, record, "question", str), "options": _four(place, record, "choices")}, gold


def _dialogue(place: str, record: Record) -> tuple[dict[str, Any], int]:
    answer = field(place, record, "answers", str)
    if answer not in LETTERS:
        raise UserError(f"{place}: the field 'answers' should be A, B, C or D, got {answer!r}")
    article = field(place, record, "article", str)
    return {"article": article, "options": _four(place, record, "options")}, LETTERS.index(answer)


_BUILDERS: dict[str, Callable[[str, Record], tuple[dict[str, Any], int]]] = {
    "nli": _entailment,
    "sst": _sentence,
    "cola": _sentence,
    "rte": _entailment,
    "mmlu": _mmlu,
    "mrpc": _paraphrase,
    "dialogue": _dialogue,
    "sentiment": _sentence,
}
