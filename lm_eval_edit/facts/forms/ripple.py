"""RippleEdits: an edit, and six axes of tests of what must change with it and what must not.

The published files name subjects and targets by their Wikidata ids. A copy that has their texts beside the ids is read
(`subject`, `subject_label` or `subject_name`, and so for `target`, of `edit` and of its `original_fact`); a record that
has the ids only is passed over, with the reason. Where the copy has the sentence without its object, too
(`fact_prompt`), that is the prompt.

    locality      Relation_Specifity, Forgetfulness: what must stay; the first answer counts
    portability   Logical_Generalization, Compositionality_I and _II, Subject_Aliasing: a test is an item of one or
                  several queries, with `test_condition` OR any of them answered, with AND all

A query with several answers (the siblings of somebody) is answered by all of them, each by one of its names. One with
an answer that has no text, an id that was not resolved, cannot be judged: it is not asked, nor is the rest of an AND.

`condition_queries` say what the unedited model has to know for a test to be fair. They are not asked: the figure of
the unedited model (editor=none) is there to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

from lm_eval_edit.facts.fields import Field, shown
from lm_eval_edit.facts.forms.form import Form, Values
from lm_eval_edit.facts.portability import ALIAS, ALL, ANY, LOGICAL, MULTI_HOP, Question

_STAYS = ("Relation_Specifity", "Relation_Specificity", "Forgetfulness")
_CHANGES = {
    "Logical_Generalization": LOGICAL,
    "Compositionality_I": MULTI_HOP,
    "Compositionality_II": MULTI_HOP,
    "Subject_Aliasing": ALIAS,
}
AXES = (*_STAYS, *_CHANGES)
_CONDITIONS = {"OR": ANY, "AND": ALL}
_TEXT = ("", "_label", "_name")  # behind `subject` and `target`
_INSIDE = ("value", "label", "name")  # where that is an object
_WANTED = "RippleEdits names subjects by their ids only: a copy with their texts is needed"


def _ripple(r: Field) -> list[Values]:
    edit = r["edit"]
    subject, target = _text(edit, "subject"), _text(edit, "target")
    sentence = edit["prompt"].text()
    values: Values = {
        "subject": subject,
        "prompt": edit["fact_prompt"].text() or _prompt(sentence, target),
        "target_new": target,
        "target_true": _text(edit["original_fact"], "target"),
        "relation": edit["relation"].text(),
        "locality": [probe for axis in _STAYS for probe in _probes(r[axis])],
        "portability": [question for axis, kind in _CHANGES.items() for question in _questions(r[axis], axis, kind)],
    }
    ids = [
        f"{role} by its id only ({edit[f'{role}_id'].text()})"
        for role, text in (("subject", subject), ("target", target))
        if text is None and not edit[f"{role}_id"].missing
    ]
    return [values | {"unusable": f"it names its {' and its '.join(ids)}; {_WANTED}"}] if ids else [values]


def _text(holder: Field, role: str) -> str | None:
    """The text of a subject or a target; None where there is none."""
    for ending in _TEXT:
        field = holder[role + ending]
        if isinstance(field.value, Mapping):
            field = next((field[name] for name in _INSIDE if field.has(name)), field)
        if not field.missing and (text := field.text()):
            return text
    return None


def _prompt(sentence: str | None, target: str | None) -> str | None:
    """A sentence up to its object: "The capital of Tor is Kelm." -> "The capital of Tor is"."""
    if sentence is None or not target:
        return sentence
    whole = sentence.rstrip().rstrip(".。").rstrip()
    for text in (target.strip(), target.strip().rstrip(".")):  # an object may end in a full stop of its own
        if text and whole.endswith(text) and len(whole) > len(text):
            return whole[: -len(text)].rstrip()
    return sentence


def _queries(test: Field) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(prompt, the names of each of its answers, none for one without a text) of a test's queries."""
    found = []
    test.needs("test_queries")
    for query in test["test_queries"].entries():
        for name in ("prompt", "answers"):
            query.needs(name)
        found.append(((query["prompt"].text() or "").strip(), list(map(_names_of, query["answers"].entries()))))
    return found


def _names_of(answer: Field) -> tuple[str, ...]:
    """A value and its aliases, those of one letter left out, as the published code does."""
    if not isinstance(answer.value, Mapping):
        return tuple(dict.fromkeys(answer.texts()))
    aliases = [alias for alias in answer["aliases"].texts() if len(alias) > 1 or alias.isdigit()]
    return tuple(dict.fromkeys([*answer["value"].texts(), *aliases]))


def _probes(axis: Field) -> list[tuple[str, str]]:
    queries = [query for test in axis.entries() for query in _queries(test)]
    return [(prompt, names[0]) for prompt, answers in queries if prompt and (names := next(filter(None, answers), ()))]


def _questions(axis: Field, name: str, kind: str) -> list[Question]:
    found = []
    for number, test in enumerate(axis.entries()):
        queries, condition = _queries(test), test["test_condition"]
        said = (condition.text() or "OR").strip().upper()
        if said not in _CONDITIONS:
            condition.wrong(f"{condition.path} should be OR or AND; got {shown(condition.value)}")
        judged = [(prompt, answers) for prompt, answers in queries if prompt and answers and all(answers)]
        if _CONDITIONS.get(said) == ALL and len(judged) < len(queries):
            continue  # without one of its queries the test would be easier
        group = f"{name} {number}" if len(judged) > 1 else None
        how = _CONDITIONS.get(said, ANY) if group else ANY
        found += [Question(kind, prompt, first, group, how, tuple(also)) for prompt, (first, *also) in judged]
    return found


def _names(role: str) -> tuple[str, ...]:
    return (f"edit.{role}_id", *(f"edit.{role}{ending}" for ending in _TEXT))


RIPPLE = Form(
    "RippleEdits", (("edit.prompt", "edit.fact_prompt"), _names("subject"), _names("target")), _ripple, remark=_WANTED
)
