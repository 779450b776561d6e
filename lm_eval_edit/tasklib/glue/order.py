"""The published order of a set's records, rebuilt: the lists themselves are pickles that come without a licence."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lm_eval_edit.tasklib.glue.catalogue import AS_THEY_ARE, BALANCED

SEED = 37


def published(labels: Sequence[int], order: str) -> list[int]:
    """Which record each item of the published list is.

    Args:
        labels: Of the records in the order of their file.
        order: One of `catalogue`'s.
    """
    if order == AS_THEY_ARE:
        return list(range(len(labels)))
    return balanced(labels) if order == BALANCED else from_the_end(labels)


def _by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Records of each label; the labels in the order in which they first come."""
    lists: dict[int, list[int]] = {}
    for record, label in enumerate(labels):
        lists.setdefault(label, []).append(record)
    return lists


def balanced(labels: Sequence[int]) -> list[int]:
    """The records of each label shuffled, then one of each in turn, as far as the shortest list goes.

    One generator, seeded anew for each set, shuffles the lists one after the other.
    """
    lists, rng = _by_label(labels), random.Random(SEED)
    for records in lists.values():
        rng.shuffle(records)
    return [record for turn in zip(*lists.values(), strict=False) for record in turn]


def from_the_end(labels: Sequence[int]) -> list[int]:
    """The last record of each label, then the last but one, and so on; at the end what is left of the longer list.

    The smaller label (False: not entailed) comes first in every turn.
    """
    lists = [records[::-1] for _, records in sorted(_by_label(labels).items())]
    turns = range(max(map(len, lists), default=0))
    return [records[turn] for turn in turns for records in lists if turn < len(records)]
