"""Questions whose answers follow from the facts of the demo world, one or two a fact.

alias      the subject under another name: its own, with something else that is true of it
multi_hop  through a rule that needs the fact: brothers have one mother tongue; the mayor of a city holds a passport of
           the city's country; who works in an office lives where it is

The demo model answers nearly all of them before it is edited, with the true object. It does not compose facts: the
subject is named in every question, and what is asked for is the fact's own object. A question that names the subject by
a fact alone is beyond a model of this size, and one the other way round has many answers (a country has many citizens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Relation -> another relation of such subjects, and how its true object joins the subject's name.
_ALIASES = {
    "mother_tongue": ("profession", "The {known} {subject} speaks"),
    "profession": ("citizenship", "{subject} from {known} goes to work as a"),
    "instrument": ("profession", "The {known} {subject} plays the"),
    "citizenship": ("profession", "The {known} {subject} is a citizen of"),
    "product": ("headquarters", "The {known} company {subject} is a maker of"),
    "headquarters": ("product", "The {known} maker {subject} has its main office in"),
    "country": ("crop", "{subject} with its {known} is a city in"),
    "river": ("country", "{subject} in {known} lies on the river"),
    "crop": ("country", "The city {subject} in {known} is famous for its"),
}
#: Relation -> what follows from it.
_HOPS = {
    "mother_tongue": "A brother of {subject} speaks",
    "headquarters": "A worker of the main office of {subject} lives in",
    "country": "The mayor of {subject} holds a passport of",
}


def with_questions(records: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The facts of the world, each with its questions, whose answers are what they are once the fact is edited."""
    known = {(record["subject"], record["relation"]): record["target_true"] for record in records}
    return tuple(record | {"portability": _questions(record, known)} for record in records)


def _questions(record: dict[str, Any], known: dict[tuple[str, str], str]) -> list[dict[str, Any]]:
    subject, relation, answers = record["subject"], record["relation"], [record["target_new"]]
    other, alias = _ALIASES[relation]
    prompts = [("alias", alias.format(known=known[subject, other], subject=subject))]
    if relation in _HOPS:
        prompts.append(("multi_hop", _HOPS[relation].format(subject=subject)))
    return [{"kind": kind, "prompt": prompt, "answers": answers} for kind, prompt in prompts]
