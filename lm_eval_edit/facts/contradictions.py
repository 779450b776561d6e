"""Facts of one schedule that cannot all hold: the same question with different objects; and facts that stand twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass

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
    prompts = [one_form(fact.text) for fact in facts]
    relations = [
        (one_form(fact.subject), one_form(fact.relation)) if fact.relation and fact.subject.strip() else None
        for fact in facts
    ]
    objects = [one_form(fact.target_new) for fact in facts]

    def several(values: Sequence[str], group: Sequence[int]) -> bool:
        return len({values[position] for position in group}) > 1

    def ids(groups: Iterable[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(str(facts[position].id) for position in group) for group in groups)

    return Repetitions(
        contradicting=ids(group for group in _groups(prompts) if several(objects, group)),
        competing=ids(g for g in _groups(relations) if several(objects, g) and several(prompts, g)),
        repeated=ids(_groups(list(zip(prompts, objects, strict=True)))),
    )


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """The positions of each key that stands more than once (None never does), in order."""
    found: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(position)
    return [group for group in found.values() if len(group) > 1]


def _count(groups: Sequence[Sequence[str]]) -> str:
    return f"{sum(map(len, groups))} facts in {len(groups)} group{'s' * (len(groups) > 1)}"


def _named(groups: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(", ".join(group[:5]) + (", ..." if len(group) > 5 else "") for group in groups[:NAMED])
    return shown + ("; ..." if len(groups) > NAMED else "")
