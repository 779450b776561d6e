"""Facts: what an edit changes, made of the records of the field's data files (`sources` finds the files).

A fact is (subject s, relation as a prompt, object o, new object o*). `readers` has the forms of records.

The package's own JSON(L) fields, one object per fact, all texts (numbers are taken as their digits, 1998.0 as 1998;
null and NaN are missing):
    subject      the entity, e.g. "Nils Albrecht"
    prompt       a text with {} where the subject stands, or with the subject in clear
    target_new   the new object o*
  and optionally
    id           a string or number that names the fact (default: its position in the file, counted from 0)
    target_true  the true object o
    prediction   what the unedited model answers
    paraphrases  other prompts of the same meaning ({} or in clear)
    question     the fact as a question ({} or in clear)
    locality     [{"prompt": ..., "answer": ...}], prompts whose answers must stay
    relation     a name of the relation
    separator    what stands between a prompt of the fact and the object that continues it, "" allowed; left out, what
                 stands on both sides decides (`separators`)
    portability  [{"kind": ..., "prompt": ..., "answers": [...]}], questions whose answers follow from the fact
                 (`portability` has the kinds); {} or in clear; those with one "group" are one item, of which "any" (the
                 default) or "all" have to be answered: "condition"; "also": [[...], ...] has further answers that have
                 to be said as well, each with its aliases
    case         ids of the facts that are edited together, this one among them; its questions are about all of them
    subject_at   at which character of the prompt the subject's place begins, from 0; for a prompt that holds the
                 subject in clear and {} too
    generation_prompts  beginnings of texts about the subject ({} or in clear), which the model is to go on with
    target_new_id       what reference texts call the new object (CounterFact: its id in Wikidata; default: its words)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, overload

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.errors import UserError, in_one_error, problems_of
from lm_eval_edit.facts.files import Unreadable
from lm_eval_edit.facts.portability import Question as Question
from lm_eval_edit.facts.readers import read_record, stated_id
from lm_eval_edit.facts.separators import continuing
from lm_eval_edit.facts.slots import SLOT as SLOT
from lm_eval_edit.facts.slots import Template as Template
from lm_eval_edit.facts.slots import in_clear as in_clear
from lm_eval_edit.facts.slots import place_at, subject_place
from lm_eval_edit.facts.slots import with_slot as with_slot
from lm_eval_edit.facts.subject_span import subject_span

# Fields that say what the edited model is to write freely, and all that only tasks ask about: no edit depends on it.
_GENERATION = ("generation_prompts", "target_new_id")
_ASKED = ("portability", "case", "unusable", *_GENERATION)


@dataclass(frozen=True)
class Probe:
    """A prompt (in clear) whose answer an edit must leave alone."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One fact to be edited: after the edit, `prompt` about `subject` should continue with `target_new`.

    Args:
        subject: The entity the fact is about; empty where nobody says, for editors that need none.
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
        portability: Questions whose answers follow from the fact, or from all facts of its case.
        case: The ids of the facts that belong together, in their order, with its own; empty where it stands alone.
        unusable: Why its source says that it cannot be edited, whatever its fields; None where it does not.
        generation_prompts: Beginnings of texts about the subject, for what the model writes freely.
        target_new_id: What collections of reference texts call the new object; None where its words do.
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
    portability: tuple[Question, ...] = ()
    case: tuple[str, ...] = ()
    unusable: str | None = field(default=None, repr=False, compare=False)
    generation_prompts: tuple[str, ...] = ()
    target_new_id: str | None = None

    def __post_init__(self) -> None:
        # In the Unicode form in which the prompt writes it, so that an editor and a task read the same characters.
        if self.subject.strip() and self.subject not in self.prompt and SLOT not in self.prompt:
            span = subject_span(self.prompt, self.subject)
            object.__setattr__(self, "subject", self.prompt[slice(*span)] if span else self.subject)

    def problem(self) -> str | None:
        """Why this fact cannot be edited, or None."""
        if self.unusable:
            return self.unusable
        if not self.subject.strip() and (SLOT in self.prompt or not self.prompt.strip()):
            return "the subject is empty"
        if not self.target_new.strip():
            return "the target is empty"
        if not self.prompt.strip():
            return "the prompt is empty"
        if not self.subject.strip():  # few editors need none; the others say that they do
            return None if self.subject_at is None else f"subject_at={self.subject_at}: the fact names no subject"
        place = self._place()
        return place if isinstance(place, str) else None

    def _place(self) -> tuple[int, int] | str:
        """Where in the prompt the subject's place begins and ends; the problem in words where that is not plain."""
        if not self.subject.strip():
            return "it names no subject"
        if self.subject_at is None:
            return subject_place(self.prompt, self.subject)
        return place_at(self.prompt, self.subject, self.subject_at) or (
            f"subject_at={self.subject_at}: neither {SLOT} nor the subject begins there in {self.prompt!r}"
        )

    @property
    def template(self) -> Template:
        """The prompt with `{}` at the subject's place: its first occurrence as a word, else its first at all."""
        place = self._place()
        if isinstance(place, str):
            raise UserError(f"fact {self.id}: {place}")
        return Template(self.prompt[: place[0]], self.prompt[place[1] :])

    @property
    def text(self) -> str:
        """The prompt in clear."""
        if not self.subject.strip():
            return self.prompt
        return self.template.about(self.subject)

    @property
    def target(self) -> str:
        """The new object as it continues the prompt, its separator included."""
        return self.continuing(self.text, self.target_new)

    def behind(self, context: str) -> Template:
        """The prompt with a context template around it, `{}` at the subject's place.

        Args:
            context: A text with `{}` at the prompt's place.
        """
        left, right = Template.of(context).sides
        before, after = self.template.sides
        return Template(left + before, after + right)

    def text_behind(self, context: str) -> str:
        """The prompt in clear with a context template around it."""
        return Template.of(context).about(self.text)

    @property
    def essence(self) -> Template:
        """ "{} is a", after whose subject ROME's KL term holds the next words still."""
        return Template("", " is a")

    def continuing(self, prompt: str, text: str) -> str:
        """An object as it continues one of the fact's prompts (in clear), its separator included."""
        return continuing(prompt, text, self.separator)

    def record(self) -> dict[str, Any]:
        """This fact in the package's own fields, empty ones left out."""
        asked = {"portability": [question.record() for question in self.portability]} if self.portability else {}
        generation = {name: value for name in _GENERATION if (value := getattr(self, name)) not in (None, ())}
        return self.identity() | asked | ({"case": list(self.case)} if self.case else {}) | generation

    def identity(self) -> dict[str, Any]:
        """`record` without what only a task asks about: what hashes are made of, and by what ledgers compare facts.

        A ledger goes on with a fact whose questions another release reads, or somebody has added.
        """
        whole = asdict(replace(self, portability=(), case=()))
        return {name: value for name, value in whole.items() if name not in _ASKED and value not in (None, (), [])}


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """`Fact.identity` of what `Fact.record` wrote."""
    return {name: value for name, value in record.items() if name not in _ASKED}


@dataclass(frozen=True)
class SkippedFact:
    """A record that cannot be edited, and why.

    Args:
        id: The fact's; None for one that has none.
        reason: As a sentence without an end.
        record: Its number in the source, as errors count; None where an editor, not the source, has no use for it.
    """

    id: str | None
    reason: str
    record: int | None = None


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

    @overload
    def __getitem__(self, index: int) -> Fact: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Fact, ...]: ...

    def __getitem__(self, index: int | slice) -> Fact | tuple[Fact, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def sha256(self) -> str:
        """A hash of the facts' content, portability aside, independent of the file format they came in."""
        return hash_json([fact.identity() for fact in self.items])


# ------------------------------------------------------------------------------------------------------- from records

MOST_PROBLEMS = 10  # of one source told one by one


def parse_records(record: Any, where: str, default_id: str) -> list[Fact]:
    """The facts of one record of any known form; all forms but MQuAKE's hold one.

    Args:
        record: The parsed JSON object.
        where: File and line, for errors.
        default_id: The fact's id when the record has none.

    Raises:
        UserError: the record is not an object, lacks a field its form needs, or has something else for a text; a
            ConfigurationError where that is several problems.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a fact is a JSON object with fields; got {type(record).__name__}")
    values, problems = read_record(record, default_id)
    if problems:
        raise in_one_error([f"{where}: {problem}" for problem in problems])
    return [_fact(entry) for entry in values]


def _fact(values: dict[str, Any]) -> Fact:
    probes = tuple(Probe(prompt, answer) for prompt, answer in values.pop("locality", ()))
    for name in ("paraphrases", "portability", "case", "generation_prompts"):
        values[name] = tuple(values.get(name, ()))
    return Fact(locality=probes, **values)


def parse_record(record: Any, where: str, default_id: str) -> Fact:
    """The fact of a record that holds one; see `parse_records`.

    Raises:
        UserError: as there, or the record holds several.
    """
    facts = parse_records(record, where, default_id)
    if len(facts) != 1:
        raise UserError(f"{where}: holds {len(facts)} facts; one was wanted")
    return facts[0]


def read_facts(records: Iterable[tuple[int, Any]], source: str) -> Facts:
    """Facts from parsed records: usable ones kept, the others listed with the reason.

    Args:
        records: (line or position, record) pairs.
        source: What errors and results call this data.

    Raises:
        UserError: there is none, a record cannot be read, or two facts share an id; a ConfigurationError where that is
            several problems.
    """
    kept: list[Fact] = []
    skipped: list[SkippedFact] = []
    problems: list[str] = []
    seen: dict[str | None, int] = {}
    position = -1
    records = list(records)
    stated = {stated_id(record) for _, record in records}
    for position, (number, record) in enumerate(records):
        if isinstance(record, Unreadable):
            problems.append(record.problem)
            continue
        try:
            default_id = f"record {number}" if str(position) in stated else str(position)
            facts = parse_records(record, f"{source}, record {number}", default_id)
        except UserError as error:
            problems += problems_of(error)
            continue
        for fact in facts:
            if fact.id in seen:
                problems.append(f"{source}: records {seen[fact.id]} and {number} have the same id {fact.id!r}")
                continue
            seen[fact.id] = number
            reason = fact.problem()
            if reason is None:
                kept.append(fact)
            else:
                skipped.append(SkippedFact(fact.id, reason, number))
    if position < 0:
        raise UserError(f"{source} holds no facts")
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise in_one_error(problems[:MOST_PROBLEMS] + ([f"{source}: and {more} more problems"] if more > 0 else []))
    return Facts(tuple(kept), tuple(skipped), source)
