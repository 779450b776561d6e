"""In words: which facts are passed over, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lm_eval_edit.facts.fact import SkippedFact

NAMED = 3  # facts named one by one
LONGEST = 300  # characters of a reason, which quotes a prompt
_QUOTED = re.compile(r"\s*(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")


def kind(reason: str) -> str:
    """A reason without what it quotes of its fact and without its details: one for all facts that share it."""
    return _QUOTED.sub("", reason).split(";")[0]


def reasons(skipped: Sequence[SkippedFact]) -> str:
    """The first facts with their reasons and, where there are more, how many were passed over for each reason.

    Args:
        skipped: At least one.
    """
    named = "; ".join(_one(fact) for fact in skipped[:NAMED])
    if len(skipped) <= NAMED:
        return named
    counts = Counter(kind(fact.reason) for fact in skipped).most_common()
    return f"{named}; ... In all: {', '.join(f'{count} because {reason}' for reason, count in counts)}"


def _one(fact: SkippedFact) -> str:
    where = f"id {fact.id}" if fact.record is None else f"record {fact.record} (id {fact.id})"
    reason = fact.reason if len(fact.reason) <= LONGEST else fact.reason[:LONGEST] + "..."
    return f"{where}: {reason}"
