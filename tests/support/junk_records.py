"""Records of facts in which anything may stand for a field, drawn from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval_edit import Fact, UserError
from lm_eval_edit.facts.fact import parse_record, parse_records

VALUES = (None, math.nan, math.inf, True, 0, 1998.0)
TEXTS = ("", " ", "Orvanta", "The capital of Orvanta is", "{}", "{} is {}", "\ud800", "\0", "e\u0301")


def junk_records(
    seed: int,
    number: int,
    good: Sequence[Mapping[str, Any]],
    more: Sequence[str] = (),
    inner: Sequence[str] = (),
    texts: Sequence[str] = TEXTS,
) -> Iterator[dict[str, Any]]:
    """Good records, in each of which up to three fields hold junk.

    Args:
        seed: Of the draws.
        number: Of the records.
        good: What each is made of; their fields' names are those that may hold junk.
        more: Further names.
        inner: Names of fields of the objects that junk may be.
        texts: Texts that junk may be.
    """
    draw = random.Random(seed)
    names = sorted({name for record in good for name in record} | set(more))

    def junk(depth: int) -> Any:
        if depth and draw.random() < 0.4:
            return [junk(depth - 1) for _ in range(draw.randrange(3))]
        if depth and draw.random() < 0.45:
            return {name: junk(depth - 1) for name in draw.sample(inner, draw.randrange(min(6, len(inner) + 1)))}
        return draw.choice([*VALUES, *texts, *texts])

    for _ in range(number):
        yield dict(draw.choice(good)) | {name: junk(4) for name in draw.sample(names, draw.randrange(4))}


def facts_or_error(record: Mapping[str, Any]) -> list[Fact]:
    """The facts of a record, each as a ledger keeps it, too; none where it is refused, in words that can be printed."""
    try:
        facts = parse_records(record, "here", "0")
    except UserError as error:
        str(error).encode()
        return []
    for fact in facts:
        assert parse_record(fact.record(), "ledger", "0") == fact, "as a ledger keeps it"
    return facts
