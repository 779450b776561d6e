"""Which facts are edited, in which order, how many at once.

The paper's four settings are two numbers: n_edits facts in operations of edit_batch_size (single or sequential,
instance or batch). Order is a seeded permutation whose prefixes nest: the first 20 of 50 are the 20 of 20. Facts that a
method cannot edit are passed over in that order, so methods that cannot edit all agree in the order of the others.
Facts of one case (MQuAKE) stay together: the case is drawn, and its facts follow each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact, SkippedFact
from lm_eval_edit.facts.skipped import reasons


@dataclass(frozen=True)
class EditSchedule:
    """A plan of editing operations.

    Args:
        n_edits: How many facts are edited in all.
        edit_batch_size: How many facts one operation edits together; the last operation may have fewer.
        seed: Seeds the permutation of the facts; None keeps their order (the paper's scripts take an index range).
        offset: How many facts of that order, of those that can be edited, are passed over first.
    """

    n_edits: int
    edit_batch_size: int = 1
    seed: int | None = 0
    offset: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_edits", 0), ("edit_batch_size", 1), ("offset", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: want a whole number of at least {least}")

    def order(
        self,
        facts: Sequence[Fact],
        editable: Callable[[Fact], bool] = lambda fact: True,
        skipped: Sequence[SkippedFact] | None = None,
    ) -> list[Fact]:
        """The facts to edit, first to last.

        Args:
            facts: All there are, in the order of their file.
            editable: Whether a fact can be edited.
            skipped: All that cannot, to be told where too few remain; those of the facts' source where None is given.

        Raises:
            UserError: fewer facts than n_edits remain after the offset.
        """
        drawn = _cases(facts)
        if self.seed is not None:
            random.Random(self.seed).shuffle(drawn)
        positions = [position for case in drawn for position in case if editable(facts[position])]
        chosen = positions[self.offset : self.offset + self.n_edits]
        if len(chosen) < self.n_edits:
            of_source = getattr(facts, "skipped", ())
            skipped = of_source if skipped is None else skipped
            after = f" after edit_offset={self.offset}" if self.offset else ""
            why = f" {reasons(skipped)}." if skipped else ""
            raise UserError(
                f"n_edits={self.n_edits}: only {max(len(positions) - self.offset, 0)} usable facts are there{after} "
                f"(of {len(facts) + len(of_source)}){':' if why else ';'}{why} {'L' if why else 'l'}ower n_edits or "
                f"give a larger edit_dataset"
            )
        return [facts[position] for position in chosen]

    def operations(
        self,
        facts: Sequence[Fact],
        editable: Callable[[Fact], bool] = lambda fact: True,
        skipped: Sequence[SkippedFact] | None = None,
    ) -> list[list[Fact]]:
        """The editing operations, each a batch of facts that is edited together; see `order`."""
        order = self.order(facts, editable, skipped)
        size = self.edit_batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]


def _cases(facts: Sequence[Fact]) -> list[list[int]]:
    """The positions of the facts of each case, in the order of the file; a fact without one is a case of its own."""
    cases: dict[object, list[int]] = {}
    for position, fact in enumerate(facts):
        cases.setdefault(fact.case or position, []).append(position)
    return list(cases.values())
