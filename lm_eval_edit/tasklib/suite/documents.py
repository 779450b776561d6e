"""Raw records -> documents, one function for each task; every field a prompt or a metric needs is checked here.

A record has the fields of its hub data set, wherever it came from. A document has exactly the fields below, and the
text in it is the text of the prompt. `sources` adds `source`, `shortened` and `overlong`.

    gsm8k      question, hint, answer (the gold number as written)
    rte        sentence1, sentence2, entailment (bool)
    nq         question, passage (None: closed book), answers
    boolq      passage, question, answer (bool)
    mutual     article, options (4), answer (A-D)
    samsum     dialogue, summary
    conll2003  sentence_id, sentence, entity_type, tokens, tags (BIO strings of all types)
    sst2       text, positive (bool)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.records.fields import ENTAILMENT, binary, each, field, label, strings
from lm_eval_edit.tasklib.records.layouts import Placed, Record
from lm_eval_edit.tasklib.suite.prompts import ENTITY_NAMES, sentence_text

Document = dict[str, Any]

# The order of the class labels in the hub's CoNLL-2003.
NER_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_TAG_OF: dict[Any, str] = {**dict(enumerate(NER_TAGS)), **{tag: tag for tag in NER_TAGS}}
_DOC = "-DOCSTART-"


def build(task: str, records: Iterable[Placed]) -> tuple[list[Document], dict[str, Any]]:
    """The task's documents, and what there is to know about them (counts of dropped records, `with_passage`).

    Raises:
        UserError: Records that lack a needed field or hold something else in it; place and field are named.
    """
    records = list(records)
    notes: dict[str, Any] = {"records": len(records)}
    if task == "conll2003":
        firsts = each(records, lambda place, record: strings(place, record, "tokens")[0])
        sentences = [placed for placed, first in zip(records, firsts, strict=True) if first != _DOC]
        notes["docstart_dropped"] = len(records) - len(sentences)
        numbers = iter(range(len(sentences)))
        read = each(sentences, lambda place, record: list(_conll2003(next(numbers), place, record)))
        docs = [doc for of_sentence in read for doc in of_sentence]
    else:
        docs = each(records, _BUILDERS[task])
    if task == "nq":
        notes["with_passage"] = all(doc["passage"] is not None for doc in docs)
    return docs, notes


def _gsm8k(place: str, record: Record) -> Document:
    rationale, mark, answer = field(place, record, "answer", str).partition("#### ")
    if not mark or not answer.strip():
        raise UserError(f"{place}: the field 'answer' should end with '#### <number>'")
    return {"question": field(place, record, "question", str), "hint": rationale, "answer": answer.strip()}


def _rte(place: str, record: Record) -> Document:
    return {
        "sentence1": field(place, record, "sentence1", str),
        "sentence2": field(place, record, "sentence2", str),
        "entailment": label(place, record, "label", *ENTAILMENT) == 0,
    }


def _nq(place: str, record: Record) -> Document:
    passage = None
    name = "passages" if "passages" in record else "output"  # the latter in the paper's file
    if name in record:
        whole = isinstance(record[name], str)
        passage = field(place, record, name, str) if whole else strings(place, record, name)[0]
    return {
        "question": field(place, record, "question", str),
        "passage": passage,
        "answers": strings(place, record, "answer"),
    }


def _boolq(place: str, record: Record) -> Document:
    name = "label" if "label" in record and "answer" not in record else "answer"  # SuperGLUE's name, and the original
    return {
        "passage": field(place, record, "passage", str),
        "question": field(place, record, "question", str),
        "answer": binary(place, record, name),
    }


def _mutual(place: str, record: Record) -> Document:
    options, answer = strings(place, record, "options"), field(place, record, "answers", str)
    if len(options) != 4:
        raise UserError(f"{place}: the field 'options' should hold 4 options, got {len(options)}")
    if answer not in ("A", "B", "C", "D"):
        raise UserError(f"{place}: the field 'answers' should be A, B, C or D, got {answer!r}")
    return {"article": field(place, record, "article", str), "options": options, "answer": answer}


def _samsum(place: str, record: Record) -> Document:
    return {"dialogue": field(place, record, "dialogue", str), "summary": field(place, record, "summary", str)}


def _sst2(place: str, record: Record) -> Document:
    return {"text": field(place, record, "sentence", str), "positive": label(place, record, "label") == 1}


def _conll2003(sentence_id: int, place: str, record: Record) -> Iterator[Document]:
    """One sentence, four documents."""
    tokens, raw = strings(place, record, "tokens"), field(place, record, "ner_tags", list, tuple)
    if len(raw) != len(tokens):
        raise UserError(f"{place}: {len(raw)} 'ner_tags' for {len(tokens)} 'tokens'")
    try:
        tags = [_TAG_OF[tag] for tag in raw]
    except (KeyError, TypeError):
        accepted = ", ".join(f"{i} {tag}" for i, tag in enumerate(NER_TAGS))
        raise UserError(f"{place}: the field 'ner_tags' holds an unknown tag (known: {accepted})") from None
    sentence = sentence_text(tokens)
    for entity_type in ENTITY_NAMES:
        yield {
            "sentence_id": sentence_id,
            "sentence": sentence,
            "entity_type": entity_type,
            "tokens": tokens,
            "tags": tags,
        }


_BUILDERS: dict[str, Callable[[str, Record], Document]] = {
    "gsm8k": _gsm8k,
    "rte": _rte,
    "nq": _nq,
    "boolq": _boolq,
    "mutual": _mutual,
    "samsum": _samsum,
    "sst2": _sst2,
}
