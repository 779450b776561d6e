"""Facts of one schedule that cannot all hold: the same question with different objects; and facts that stand twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.subject_span import one_form

NAMED = 3  # groups named one by one


@dataclass(frozen=True)
class Repetitions:
    """Groups of facts that ask the same, by id, each in the order of the schedule.

    Texts are compared in one form (`one_form`: white space and Unicode form aside), prompts in clear.

    Args:
        contradicting: Groups with one prompt and several objects: no model can answer them all.
        competing: Groups with one subject and one relation, asked in several prompts, and several objects: they
            contradict each other unless the relation has several values.
        repeated: Groups with one prompt and one object: one fact, edited again.
    """

    contradicting: tuple[tuple[str, ...], ...] = ()
    competing: tuple[tuple[str, ...], ...] = ()
    repeated: tuple[tuple[str, ...], ...] = ()

    def warnings(self) -> list[str]:
        """What a user should know, a sentence for each kind there is."""
        out = []
        if self.contradicting:
            out.append(
                f"{_count(self.contradicting)} of the schedule contradict each other (same prompt, different objects): "
                f"{_named(self.contradicting)}. No model can answer them all, so efficacy after the whole schedule "
                f"cannot reach 1; editing goes on"
            )
        if self.competing:
            out.append(
                f"{_count(self.competing)} of the schedule may contradict each other (same subject and relation, "
                f"different objects): {_named(self.competing)}. They can hold together only where that relation has "
                f"several values; editing goes on"
            )
        if self.repeated:
            out.append(
                f"{_count(self.repeated)} of the schedule are duplicates (same prompt, same object): "
                f"{_named(self.repeated)}. Each is edited again and counted again"
            )
        return out

    def record(self) -> dict[str, list[list[str]]]:
        """As JSON."""
        return {name: [list(ids) for ids in groups] for name, groups in asdict(self).items()}


def repetitions(facts: Sequence[Fact]) -> Repetitions:
    """The groups among some facts.

    Args:
        facts: Those of a schedule, first to last.
    """
    return Asked().add(facts)


class _Entry(NamedTuple):
    """One fact in one form: its prompt, its object and its id."""

    prompt: str
    object: str
    id: str


class Asked:
    """What facts ask, kept for those that come later.

    Args:
        facts: Those there are, first to last.

    Attributes:
        n_facts: How many have been taken up.
    """

    def __init__(self, facts: Sequence[Fact] = ()):
        self.n_facts = 0
        self._by_prompt: dict[Hashable, list[_Entry]] = {}
        self._by_relation: dict[Hashable, list[_Entry]] = {}
        self._by_both: dict[Hashable, list[_Entry]] = {}
        self.add(facts)

    def add(self, facts: Sequence[Fact]) -> Repetitions:
        """Take up more facts; the work does not grow with the number of those there are.

        Returns:
            The groups that the new facts belong to, earlier facts in front.
        """
        prompts: dict[Hashable, list[_Entry]] = {}
        relations: dict[Hashable, list[_Entry]] = {}
        both: dict[Hashable, list[_Entry]] = {}

        def put(key: Hashable, entry: _Entry, there: dict[Hashable, list[_Entry]], met: dict[Hashable, Any]) -> None:
            group = met[key] = there.setdefault(key, [])
            group.append(entry)

        for fact in facts:
            entry = _Entry(one_form(fact.text), one_form(fact.target_new), str(fact.id))
            put(entry.prompt, entry, self._by_prompt, prompts)
            put((entry.prompt, entry.object), entry, self._by_both, both)
            if fact.relation and fact.subject.strip():
                put((one_form(fact.subject), one_form(fact.relation)), entry, self._by_relation, relations)
        self.n_facts += len(facts)
        return Repetitions(
            contradicting=_ids(group for group in prompts.values() if _several(e.object for e in group)),
            competing=_ids(
                group
                for group in relations.values()
                if _several(e.object for e in group) and _several(e.prompt for e in group)
            ),
            repeated=_ids(group for group in both.values() if len(group) > 1),
        )


def _several(values: Iterable[str]) -> bool:
    return len(set(values)) > 1


def _ids(groups: Iterable[Sequence[_Entry]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(entry.id for entry in group) for group in groups)


def _count(groups: Sequence[Sequence[str]]) -> str:
    return f"{sum(map(len, groups))} facts in {len(groups)} group{'s' * (len(groups) > 1)}"


def _named(groups: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(", ".join(group[:5]) + (", ..." if len(group) > 5 else "") for group in groups[:NAMED])
    return shown + ("; ..." if len(groups) > NAMED else "")
