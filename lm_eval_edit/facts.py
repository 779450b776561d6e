"""Facts: what an edit changes, and readers for the records of the field's data files (`fact_sources` finds the files).

A fact is (subject s, relation as a prompt, object o, new object o*). The readers know ZsRE, CounterFact (original and
flat), KnowEdit and the package's own fields; they are told apart by the fields of each record, so mixed files work.

The package's own JSON(L) fields, one object per fact, all texts (numbers are taken as their digits):
    subject      the entity, e.g. "Nils Albrecht"
    prompt       a text with {} where the subject stands, or with the subject in clear
    target_new   the new object o*
  and optionally
    id           a string or number that names the fact (default: its position in the file)
    target_true  the true object o
    prediction   what the unedited model answers
    paraphrases  other prompts of the same meaning ({} or in clear)
    question     the fact as a question ({} or in clear)
    locality     [{"prompt": ..., "answer": ...}], prompts whose answers must stay
    relation     a name of the relation
    separator    what stands between a prompt of the fact and the object that continues it, "" allowed; left out, what
                 stands on both sides decides (`separators`)
    subject_at   at which character of the prompt the subject's place begins, from 0; for a prompt that holds the
                 subject in clear and {} too
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lm_eval_edit._files import hash_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.separators import continuing
from lm_eval_edit.slots import SLOT as SLOT
from lm_eval_edit.slots import Template as Template
from lm_eval_edit.slots import in_clear as in_clear
from lm_eval_edit.slots import place_at, subject_place
from lm_eval_edit.slots import with_slot as with_slot


@dataclass(frozen=True)
class Probe:
    """A prompt (in clear) whose answer an edit must leave alone."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One fact to be edited: after the edit, `prompt` about `subject` should continue with `target_new`.

    Args:
        subject: The entity the fact is about.
        prompt: Holds `{}` at the subject's place, or the subject in clear.
        target_new: The new object o*, with or without a leading space.
        target_true: The true object o, if known.
        id: Names the fact in ledgers and reports.
        prediction: What the unedited model answers, if the data set says so (ZsRE's `pred`).
        paraphrases: Prompts of the same meaning, for generalization.
        question: The fact as a question.
        locality: Prompts whose answers must not change.
        relation: The relation's name.
        separator: What stands between prompt and object; None where both decide (`separators`).
        subject_at: Where the subject's place in the prompt begins (`{}`, or it in clear); None where that is plain.
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    id: str | None = None
    prediction: str | None = None
    paraphrases: tuple[str, ...] = ()
    question: str | None = None
    locality: tuple[Probe, ...] = ()
    relation: str | None = None
    separator: str | None = None
    subject_at: int | None = None

    def problem(self) -> str | None:
        """Why this fact cannot be edited, or None."""
        if not self.subject.strip():
            return "the subject is empty"
        if not self.target_new.strip():
            return "the target is empty"
        if self.subject_at is not None:
            if place_at(self.prompt, self.subject, self.subject_at) is None:
                return f"subject_at={self.subject_at}: neither {SLOT} nor the subject begins there in {self.prompt!r}"
            return None
        place = subject_place(self.prompt, self.subject)
        return place if isinstance(place, str) else None

    @property
    def _place(self) -> tuple[int, int]:
        """Where in the prompt the subject's place begins and ends."""
        if self.subject_at is None:
            place = subject_place(self.prompt, self.subject)
        else:
            place = place_at(self.prompt, self.subject, self.subject_at)
        if not isinstance(place, tuple):
            raise UserError(f"fact {self.id}: {self.problem()}")
        return place

    @property
    def template(self) -> Template:
        """The prompt with `{}` at the subject's place: its first occurrence as a word, else its first at all."""
        start, end = self._place
        return Template(self.prompt[:start], self.prompt[end:])

    @property
    def text(self) -> str:
        """The prompt in clear."""
        return self.template.about(self.subject)

    @property
    def target(self) -> str:
        """The new object as it continues the prompt, its separator included."""
        return self.continuing(self.text, self.target_new)

    def continuing(self, prompt: str, text: str) -> str:
        """An object as it continues one of the fact's prompts (in clear), its separator included."""
        return continuing(prompt, text, self.separator)

    def record(self) -> dict[str, Any]:
        """This fact in the package's own fields, empty ones left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), [])}


@dataclass(frozen=True)
class SkippedFact:
    """A record that cannot be edited, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Facts(Sequence[Fact]):
    """The usable facts of one source, in file order.

    Args:
        items: The facts that can be edited.
        skipped: The records that cannot, with the reason.
        source: Where they come from: a file's path, a hub id or `demo`.
    """

    items: tuple[Fact, ...]
    skipped: tuple[SkippedFact, ...] = ()
    source: str = "given"

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def sha256(self) -> str:
        """A hash of the facts' content, independent of the file format they came in."""
        return hash_json([fact.record() for fact in self.items])


# --------------------------------------------------------------------------------------------------------- the readers


def _texts(value: Any) -> list[str]:
    """A text or a list of texts (possibly nested, as in KnowEdit) as a flat list of non-empty strings."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [str(value)] if str(value).strip() else []


def _first(value: Any) -> str | None:
    return next(iter(_texts(value)), None)


def _zsre(r: Mapping[str, Any]) -> dict[str, Any]:
    # EasyEdit and the paper edit towards `alt` (counterfactual); `answers` is the truth, `pred` the model's own answer.
    return {
        "subject": r["subject"],
        "prompt": r["src"],
        "target_new": r["alt"],
        "target_true": _first(r.get("answers")),
        "prediction": _first(r.get("pred")),
        "paraphrases": _texts(r.get("rephrase")),
        "locality": [{"prompt": r["loc"], "answer": r["loc_ans"]}] if r.get("loc") and r.get("loc_ans") else [],
    }


def _counterfact(r: Mapping[str, Any]) -> dict[str, Any]:
    rewrite = r["requested_rewrite"]
    true = rewrite["target_true"]["str"]
    return {
        "subject": rewrite["subject"],
        "prompt": rewrite["prompt"],
        "target_new": rewrite["target_new"]["str"],
        "target_true": true,
        "paraphrases": _texts(r.get("paraphrase_prompts")),
        # A neighbourhood prompt asks for the same object of another subject: the true object must stay.
        "locality": [{"prompt": prompt, "answer": true} for prompt in _texts(r.get("neighborhood_prompts"))],
        "relation": rewrite.get("relation_id"),
    }


def _flat(r: Mapping[str, Any]) -> dict[str, Any]:
    # EasyEdit's flattened CounterFact and KnowEdit share these names; KnowEdit nests locality by category.
    probes = []
    if r.get("locality_prompt") and _first(r.get("locality_ground_truth")):
        probes.append({"prompt": r["locality_prompt"], "answer": _first(r["locality_ground_truth"])})
    nested = r.get("locality") if isinstance(r.get("locality"), Mapping) else {}
    for probe in (probe for group in nested.values() for probe in group):
        answer = _first(probe.get("ground_truth"))
        if probe.get("prompt") and answer:
            probes.append({"prompt": probe["prompt"], "answer": answer})
    return {
        "subject": r["subject"],
        "prompt": r["prompt"] if "prompt" in r else r["text"],
        "target_new": _first(r["target_new"]) or "",
        "target_true": _first(r.get("ground_truth")),
        "paraphrases": _texts(r.get("rephrase_prompt") or r.get("rephrase")),
        "locality": probes,
    }


def _own(r: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subject": r["subject"],
        "prompt": r["prompt"],
        "target_new": r["target_new"],
        "target_true": r.get("target_true"),
        "prediction": r.get("prediction"),
        "paraphrases": _texts(r.get("paraphrases")),
        "question": r.get("question"),
        "locality": list(r.get("locality") or []),
        "relation": r.get("relation"),
        "separator": r.get("separator"),
        "subject_at": r.get("subject_at"),
    }


_REQUIRED = ("subject", "prompt", "target_new")
_OPTIONAL = ("target_true", "prediction", "question", "relation")


def _text(value: Any, where: str, what: str) -> str:
    """A text field; a number (a year, say) is taken as its digits, and anything else refused."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} should be text; got {value!r}")
    return value


_FLAT_ONLY = {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "rephrase", "portability"}


def _format(record: Mapping[str, Any]) -> tuple[Callable[[Mapping[str, Any]], dict[str, Any]], str]:
    if "requested_rewrite" in record:
        return _counterfact, "CounterFact"
    if "src" in record or "alt" in record:
        return _zsre, "ZsRE"
    if _FLAT_ONLY & record.keys() or isinstance(record.get("locality"), Mapping) or "text" in record:
        return _flat, "flat (EasyEdit, KnowEdit)"
    return _own, "lm-eval-edit"


def parse_record(record: Any, where: str, default_id: str) -> Fact:
    """One record of any known format as a Fact.

    Args:
        record: The parsed JSON object.
        where: File and line, for errors.
        default_id: The fact's id when the record has none.

    Raises:
        UserError: the record is not an object, lacks a field its format needs, or has something else for a text.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a fact is a JSON object with fields; got {type(record).__name__}")
    reader, name = _format(record)
    try:
        values = reader(record)
    except KeyError as missing:
        raise UserError(
            f"{where}: field {missing} is missing (read as a {name} record with the fields {', '.join(record)}). "
            f"A fact needs at least subject, prompt and target_new"
        ) from None
    except (TypeError, AttributeError):
        raise UserError(f"{where}: a field of this {name} record has another type than that format's") from None
    for key in (*_REQUIRED, *(key for key in _OPTIONAL if values.get(key) is not None)):
        values[key] = _text(values[key], where, key)
    values["paraphrases"] = tuple(values.get("paraphrases") or ())
    try:
        probes = [(probe["prompt"], probe["answer"]) for probe in values.get("locality") or ()]
    except (KeyError, TypeError):
        raise UserError(f'{where}: locality should be a list of {{"prompt": ..., "answer": ...}}') from None
    values["locality"] = tuple(
        Probe(_text(prompt, where, "a locality prompt"), _text(answer, where, "a locality answer"))
        for prompt, answer in probes
    )
    _check_place(values, name, where)
    given = next((record[key] for key in ("id", "case_id") if record.get(key) is not None), default_id)
    return Fact(id=str(given), **values)


def _check_place(values: dict[str, Any], form: str, where: str) -> None:
    """Check `separator` and `subject_at`; where a prompt holds `{}` and the subject in clear, its form says which."""
    separator, at = values.get("separator"), values.get("subject_at")
    if separator is not None and not isinstance(separator, str):
        raise UserError(f'{where}: separator should be text ("" for none); got {separator!r}')
    if at is not None and (isinstance(at, bool) or not isinstance(at, int)):
        raise UserError(f"{where}: subject_at should be a whole number, the place of a character; got {at!r}")
    prompt, subject = values["prompt"], values["subject"]
    if form == "lm-eval-edit" or SLOT not in prompt or not subject.strip():
        return
    if isinstance(subject_place(prompt, subject), str):
        start = prompt.index(SLOT) if form == "CounterFact" else prompt.find(subject)
        values["subject_at"] = start if start >= 0 else None


def read_facts(records: Iterable[tuple[int, Any]], source: str) -> Facts:
    """Facts from parsed records: usable ones kept, the others listed with the reason.

    Args:
        records: (line or position, record) pairs.
        source: What errors and results call this data.

    Raises:
        UserError: a record cannot be read, or two share an id.
    """
    kept: list[Fact] = []
    skipped: list[SkippedFact] = []
    seen: dict[str, int] = {}
    for position, (number, record) in enumerate(records):
        fact = parse_record(record, f"{source}, record {number}", default_id=str(position))
        if fact.id in seen:
            raise UserError(f"{source}: records {seen[fact.id]} and {number} have the same id {fact.id!r}")
        seen[fact.id] = number
        reason = fact.problem()
        if reason is None:
            kept.append(fact)
        else:
            skipped.append(SkippedFact(fact.id, reason))
    return Facts(tuple(kept), tuple(skipped), source)
