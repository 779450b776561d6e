"""Portability: questions whose answer follows from an edited fact, which no one edited, in every shape they come in.

A model that took an edit in as knowledge answers them; one that learnt a sentence by heart does not. Kinds, each named
by what a set's own figures are named by:

    multi_hop   the fact is one link of several (MQuAKE's `questions`, WikiBigEdit's `mhop`, EasyEdit's one hop, ZsRE's
                "Recalled Relation", RippleEdits' compositionality)
    reasoning   KnowEdit's "Reasoning"
    logical     what follows by a rule, symmetry or transitivity (RippleEdits' and KnowEdit's logical generalization)
    reversed    from the object to the subject (EasyEdit's inverse relation)
    alias       the fact with another name of its subject (subject aliasing, synonyms)
    part        a part of a long answer (UnKE's `sub_question`)
    persona     the fact asked in somebody's voice (WikiBigEdit)
    other       under a name that none of these has
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_edit.facts.fields import Field, shown

MULTI_HOP, REASONING, LOGICAL, REVERSED, ALIAS, PART, PERSONA, OTHER = KINDS = (
    "multi_hop", "reasoning", "logical", "reversed", "alias", "part", "persona", "other",
)  # fmt: skip
ANY, ALL = CONDITIONS = "any", "all"


@dataclass(frozen=True)
class Question:
    """A question that an edit should change the answer to, beside the fact's own.

    Args:
        kind: One of `KINDS`.
        prompt: Holds `{}` at the subject's place, or is in clear; it need not name the subject.
        answers: Each of them is right: the answer, and its aliases.
        group: Questions of one fact with one name here are one item, answered as `condition` says; None stands alone.
        condition: `any` of the group's questions has to be answered, or `all`.
        also: Further answers, which have to be said as well, each with its aliases.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    group: str | None = None
    condition: str = ANY
    also: tuple[tuple[str, ...], ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON, what says nothing left out."""
        out: dict[str, Any] = {"kind": self.kind, "prompt": self.prompt, "answers": list(self.answers)}
        out |= {} if self.group is None else {"group": self.group, "condition": self.condition}
        return out | ({"also": [list(each) for each in self.also]} if self.also else {})


#: What the sets call a kind, in lower case with single spaces.
_NAMES = {
    "recalled relation": MULTI_HOP, "one hop": MULTI_HOP, "two hop": MULTI_HOP, "mhop": MULTI_HOP,
    "compositionality": MULTI_HOP, "compositionality i": MULTI_HOP, "compositionality ii": MULTI_HOP,
    "logical generalization": LOGICAL, "reasoning": REASONING,
    "inverse relation": REVERSED, "reversed relation": REVERSED, "reverse": REVERSED,
    "subject aliasing": ALIAS, "subject replace": ALIAS, "synonym": ALIAS, "subject alias": ALIAS,
} | {kind.replace("_", " "): kind for kind in KINDS}  # fmt: skip


def kind_of(name: str) -> str:
    """The kind that a set's own name for it means."""
    return _NAMES.get(" ".join(re.split(r"[\W_]+", name.casefold())).strip(), OTHER)


_PROMPTS, _ANSWERS = ("prompt", "New Question"), ("answers", "ground_truth", "answer", "New Answer")
_SHAPE = '{"kind": ..., "prompt": ..., "answers": [...]}'


def asked(kind: str, prompts: Field, answers: Field, *more: Field) -> list[Question]:
    """A question and its answers, or parallel lists of questions and of their answers.

    Args:
        kind: Of all of them.
        prompts: A text, or a list of texts.
        answers: Beside a text, the answer or a list of right ones; beside a list, one of these for each.
        more: Fields of further right answers, of a single question.

    Returns:
        Those that have a prompt and an answer.
    """
    if not prompts.is_list:
        pairs: Iterator[tuple[Field, Field]] = iter([(prompts, answers)])
    elif answers.missing:
        return []
    else:
        listed = answers.entries() if answers.is_list else [answers]
        if len(prompts.entries()) != len(listed):
            prompts.wrong(
                f"{prompts.path} and {answers.path} should be lists of the same length; got {len(prompts.entries())} "
                f"and {len(listed)} entries"
            )
        pairs = zip(prompts.entries(), listed, strict=False)
    found = []
    for prompt, right in pairs:
        text = prompt.text("a portability question")
        texts = tuple(dict.fromkeys(text for field in (right, *more) for text in field.texts()))
        if text and text.strip() and texts:
            found.append(Question(kind, text, texts))
    return found


def questions(field: Field, *, strict: bool) -> list[Question]:
    """Portability in any of its shapes: a list of questions, one alone, or by category such lists or parallel lists.

    Args:
        field: The field `portability`.
        strict: As the package's own form has it: a list whose entries must be questions of known kinds.
    """
    if field.missing:
        return []
    if isinstance(field.value, Mapping) and (_one_of(field, _PROMPTS) or not field.value):
        if field.has("New Question"):  # ZsRE's
            field.needs("New Answer")
        return _entry(field, OTHER if field.has("prompt") else MULTI_HOP, strict=False)
    if isinstance(field.value, Mapping):
        return [question for name in field.value for question in _category(field[name], kind_of(str(name)))]
    if not field.is_list:
        field.wrong(f"{field.path} should be a list of {_SHAPE}, or such lists by kind; got {shown(field.value)}")
        return []
    found = [question for entry in field.entries() for question in _entry(entry, OTHER, strict)]
    _check_groups(field, found)
    return found


def _check_groups(field: Field, found: list[Question]) -> None:
    """One item is of one kind and is answered in one way."""
    for group in dict.fromkeys(question.group for question in found if question.group is not None):
        of_group = [question for question in found if question.group == group]
        for name in ("kind", "condition"):
            values = list(dict.fromkeys(getattr(question, name) for question in of_group))
            if len(values) > 1:
                field.wrong(
                    f"{field.path}: the questions of group {shown(group)} are one item, so they should have one "
                    f"{name}; got {', '.join(values)}"
                )


def _category(field: Field, kind: str) -> list[Question]:
    if field.missing:
        return []
    entries = field.entries() if field.is_list else [field]
    if kind == OTHER:  # a name that no set has: what is no question there is something else, and not judged
        entries = [entry for entry in entries if _one_of(entry, _PROMPTS) and _one_of(entry, _ANSWERS)]
    return [question for entry in entries for question in _entry(entry, kind, strict=False)]


def _entry(field: Field, kind: str, strict: bool) -> list[Question]:
    if field.missing and not strict:
        return []
    if isinstance(field.value, Mapping) and not field.value and not strict:
        return []
    if not isinstance(field.value, Mapping):
        field.wrong(f"{field.path} should be {_SHAPE}; portability should be a list of such objects")
        return []
    prompt, answer = _one_of(field, _PROMPTS), _one_of(field, _ANSWERS)
    if prompt is None or answer is None:
        if strict or (prompt is None and answer is None):
            field.wrong(f"{field.path} should be {_SHAPE}; portability should be a list of such objects")
        return []
    if field.has("kind"):
        kind = _stated_kind(field["kind"])
    found = asked(kind, field[prompt], field[answer])
    if strict and not found:
        for name in (prompt, answer):
            if not field[name].texts():
                field.wrong(f"{field.path}.{name} holds nothing; a question needs a prompt and at least one answer")
    return [_in_group(replace(question, also=_also(field["also"])), field) for question in found]


def _stated_kind(field: Field) -> str:
    text = field.text()
    if text in KINDS:
        return text
    field.wrong(f"{field.path} should be one of {', '.join(KINDS)}; got {shown(field.value)}")
    return OTHER


def _also(field: Field) -> tuple[tuple[str, ...], ...]:
    """Further answers, each a text or a list of the answer and its aliases."""
    each = (tuple(dict.fromkeys(entry.texts())) for entry in field.entries())
    return tuple(answers for answers in each if answers)


def _in_group(question: Question, field: Field) -> Question:
    group, condition = field["group"].name(), field["condition"]
    if group is None:
        return question
    text = condition.text() or ANY
    if text not in CONDITIONS:
        condition.wrong(f"{condition.path} should be one of {', '.join(CONDITIONS)}; got {shown(condition.value)}")
        text = ANY
    return replace(question, group=group, condition=text)


def _one_of(field: Field, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if field.has(name)), None)
